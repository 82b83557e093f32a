"""A worker process on servers of its own: what the demo plays with and a person may try out."""

import asyncio
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from secrets import token_hex
from time import monotonic

from outplan.testing.deployment import Deployment
from outplan.testing.errors import WorkerFailed
from outplan.testing.live.worker import WORKER_COMMAND
from outplan.testing.servers import Servers, reserve_ports, start_servers
from outplan.testing.servers.supervisor import ProcessGroup, run_on_death

_READY_SECONDS = 60.0

_CREATE = (
    '{"customer_id": "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11", "name": "my first outplan", '
    '"source": {"type": "tel", "target": "+15559876543"}, "max_try_count_0": 3}'
)


@dataclass(frozen=True)
class Sandbox:
    """A worker that consumes, and where everything around it is."""

    servers: Servers
    deployment: Deployment
    http_port: int
    folder: Path

    @property
    def worker_log(self) -> Path:
        return self.folder / "output.log"


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Start servers and a worker process; all is gone when the block ends, however it ends.

    Raises `ServersUnavailable` when there are no servers to be had, `WorkerFailed` when the worker
    does not become ready or does not drain.
    """
    with _running() as (box, _):
        yield box


def stay() -> None:
    """Keep a sandbox up, and say how to use it, until Ctrl-C or SIGTERM.

    Raises what `sandbox` does, also when the worker ends in between.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Starting RabbitMQ, MongoDB and a worker ...", flush=True)
    try:
        with _running() as (box, worker):
            print(_instructions(box), flush=True)
            while not worker.wait(1):
                pass
            raise WorkerFailed(f"the worker has ended. Its log ends:\n{worker.log()}")
    except KeyboardInterrupt:
        print("\nWhat was started is gone again.")


@contextmanager
def _running() -> Iterator[tuple[Sandbox, ProcessGroup]]:
    folder = Path(tempfile.gettempdir(), f"outplan-sandbox-{token_hex(8)}")
    with ExitStack() as stack:
        servers = stack.enter_context(start_servers())
        given = servers.mode == "urls"
        prefix = f"outplan-{token_hex(4)}" if given else "outplan"
        (port,) = stack.enter_context(reserve_ports(1))
        deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url, prefix, prefix)
        box = Sandbox(servers, deployment, port, folder)
        if given:  # servers that somebody else runs are left as they were
            stack.callback(lambda: asyncio.run(deployment.drop()))
        will = stack.enter_context(run_on_death("rm", "-rf", str(folder)))
        folder.mkdir(mode=0o700)
        yield box, stack.enter_context(_running_worker(box, will))


@contextmanager
def _running_worker(box: Sandbox, will: int) -> Iterator[ProcessGroup]:
    environment = box.deployment.environment(
        OUTPLAN_HTTP_PORT=str(box.http_port), OUTPLAN_HANG_SECONDS="0"
    )
    worker = ProcessGroup([WORKER_COMMAND], environment, box.folder, will)
    try:
        worker.launch()
        _await_ready(worker, box.http_port)
        yield worker
        _stop(worker)
    except KeyboardInterrupt:
        _stop(worker)
        raise
    finally:
        worker.kill()


def _stop(worker: ProcessGroup) -> None:
    if not worker.terminate():
        raise WorkerFailed(f"the worker did not drain. Its log ends:\n{worker.log()}")


def _await_ready(worker: ProcessGroup, http_port: int) -> None:
    deadline = monotonic() + _READY_SECONDS
    while not is_ready(http_port):
        if worker.wait(0.1) or monotonic() > deadline:
            raise WorkerFailed(f"the worker does not become ready. Its log ends:\n{worker.log()}")


def is_ready(http_port: int) -> bool:
    """Whether the worker whose endpoints are there is ready."""
    connection = HTTPConnection("127.0.0.1", http_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _instructions(box: Sandbox) -> str:
    return f"""
RabbitMQ    {box.deployment.amqp_url}
MongoDB     {box.deployment.mongo_url}
worker      http://127.0.0.1:{box.http_port}/readyz, and /livez and /metrics
its log     {box.worker_log}

In a second terminal, in this folder, watch the events:

  {_example(box, "subscribe")}

and in a third one publish a command:

  {_example(box, "publish", "outplan_create", _CREATE)}

Ctrl-C ends all of this, and with it what was stored."""


def _example(box: Sandbox, name: str, *arguments: str) -> str:
    python = os.path.relpath(sys.executable)
    if python.startswith(os.pardir):
        python = sys.executable
    prefix = [] if box.deployment.prefix == "outplan" else ["--prefix", box.deployment.prefix]
    where = ["--amqp-url", box.deployment.amqp_url, *prefix]
    return shlex.join([python, f"examples/{name}.py", *where, *arguments])

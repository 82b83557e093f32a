"""Run servers and a worker for a person to try out, and for the demo."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from secrets import token_hex
from time import monotonic

from outplan.settings import ENV_PREFIX
from outplan.testing.deployment import Deployment
from outplan.testing.errors import WorkerFailed
from outplan.testing.live.worker import WORKER_COMMAND
from outplan.testing.servers import Servers, reserve_ports, start_servers
from outplan.testing.servers.supervisor import ProcessGroup, temporary_folder

_READY_SECONDS = 60.0
_DEFAULT_NAME = "outplan"

_CREATE = (
    '{"customer_id": "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11", "name": "my first outplan", '
    '"source": {"type": "tel", "target": "+15559876543"}, "max_try_count_0": 3}'
)


@dataclass(frozen=True)
class Sandbox:
    """A worker that consumes, with its servers."""

    servers: Servers
    deployment: Deployment
    http_port: int
    worker: ProcessGroup

    @property
    def worker_log(self) -> Path:
        return self.worker.output


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Start servers and a worker process; stop both when the block or this process ends.

    Raises `ServersUnavailable`, or `WorkerFailed` if the worker does not become ready or does not
    drain.
    """
    with ExitStack() as stack:
        servers = stack.enter_context(start_servers())
        is_external = servers.mode == "urls"
        name = f"{_DEFAULT_NAME}-{token_hex(4)}" if is_external else _DEFAULT_NAME
        deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url, name, name)
        if is_external:  # other servers end with the sandbox
            stack.callback(lambda: asyncio.run(deployment.drop()))
        (port,) = stack.enter_context(reserve_ports(1))
        folder, death_fd = stack.enter_context(temporary_folder("sandbox"))
        environment = deployment.environment(OUTPLAN_HTTP_PORT=str(port), OUTPLAN_HANG_SECONDS="0")
        worker = ProcessGroup([WORKER_COMMAND], environment, folder, death_fd)
        stack.enter_context(_running(worker, port))
        yield Sandbox(servers, deployment, port, worker)


def keep_sandbox_running() -> None:
    """Run a sandbox and print how to use it, until Ctrl-C or SIGTERM.

    Raises what `sandbox` does, and `WorkerFailed` if the worker exits meanwhile.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Starting RabbitMQ, MongoDB and a worker ...", flush=True)
    try:
        with sandbox() as box:
            print(_instructions(box), flush=True)
            while not box.worker.wait(1):
                pass
            raise _worker_failed("the worker has exited", box.worker)
    except KeyboardInterrupt:
        print("\nThe servers and the worker have stopped, and their data is deleted.")


@contextmanager
def _running(worker: ProcessGroup, http_port: int) -> Iterator[None]:
    try:
        worker.launch()
        _wait_until_ready(worker, http_port)
        yield
        _stop(worker)
    except KeyboardInterrupt:
        _stop(worker)
        raise
    finally:
        worker.kill()


def _wait_until_ready(worker: ProcessGroup, http_port: int) -> None:
    deadline = monotonic() + _READY_SECONDS
    while not is_ready(http_port):
        if worker.wait(0.1) or monotonic() > deadline:
            raise _worker_failed("the worker does not become ready", worker)


def _stop(worker: ProcessGroup) -> None:
    if not worker.terminate():
        raise _worker_failed("the worker did not drain", worker)


def _worker_failed(complaint: str, worker: ProcessGroup) -> WorkerFailed:
    return WorkerFailed(f"{complaint}. Its log ends:\n{worker.log()}")


def is_ready(http_port: int) -> bool:
    """Ask the worker with its HTTP endpoints at this port whether it is ready."""
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

Paste this into other terminals, for the README's programs and the commands of outplan:

{_exports(box.deployment)}

In a second terminal, in this folder, watch the events:

  {_example(box, "subscribe")}

In a third one, publish a command:

  {_example(box, "publish", "outplan_create", _CREATE)}

Ctrl-C stops all of this and deletes its data."""


def _exports(deployment: Deployment) -> str:
    """Return the settings that differ from the defaults as lines for a shell."""
    settings = {"AMQP_URL": deployment.amqp_url, "MONGO_URL": deployment.mongo_url}
    if deployment.prefix != _DEFAULT_NAME:
        settings |= {"PREFIX": deployment.prefix, "MONGO_DATABASE": deployment.database}
    return "\n".join(
        f"export {ENV_PREFIX}{name}={shlex.quote(value)}" for name, value in settings.items()
    )


def _example(box: Sandbox, name: str, *arguments: str) -> str:
    python = os.path.relpath(sys.executable)
    if python.startswith(os.pardir):
        python = sys.executable
    deployment = box.deployment
    prefix = [] if deployment.prefix == _DEFAULT_NAME else ["--prefix", deployment.prefix]
    options = ["--amqp-url", deployment.amqp_url, *prefix]
    return shlex.join([python, f"examples/{name}.py", *options, *arguments])

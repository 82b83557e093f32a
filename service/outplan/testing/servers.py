"""Real RabbitMQ and MongoDB servers for tests: given by URL, in Docker, or as child processes."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, Protocol

import aio_pika
from aiormq.exceptions import AMQPError
from pymongo import MongoClient
from pymongo.errors import NotPrimaryError, PyMongoError

Mode = Literal["auto", "own", "urls", "docker", "processes"]

MODE_VARIABLE = "OUTPLAN_TEST_SERVERS"
AMQP_VARIABLE = "OUTPLAN_TEST_AMQP_URL"
MONGO_VARIABLE = "OUTPLAN_TEST_MONGO_URL"

_START_SECONDS = 90.0
NOT_YET = (OSError, AMQPError, PyMongoError)

_NOTHING = (
    "no RabbitMQ and MongoDB to test with. Mend one of these, or set "
    f"{AMQP_VARIABLE} and {MONGO_VARIABLE} to servers that the tests may write to:"
)

_log = logging.getLogger(__name__)


class ServersUnavailable(Exception):
    """Raised when no servers can be had. The text says what to install or set."""


class NotControllable(ServersUnavailable):
    """Raised when a server that was given by its URL is to be started, stopped and so on."""


class ServerFailed(ServersUnavailable):
    """Raised when a server does not start, stop or obey. The text has the end of its log."""


class Server(Protocol):
    """A server of the tests' own. Its URL and its data survive everything but the context's end.

    Every call may be repeated, and returns when it has been done; none is safe to be made from
    two threads at once. All of them raise `ServerFailed` when the server does not comply, and
    `NotControllable` when it was given by its URL. They block, by seconds: an event loop should
    call them by `asyncio.to_thread`.

    start    brings it back, whatever was done to it, and waits until it takes work
    stop     asks it to shut down and waits until it has
    kill     is a crash: SIGKILL for all its processes
    restart  is stop and start
    pause    is a hang: it stays connected and answers nothing
    resume   ends the pause
    """

    name: str
    url: str
    version: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class RabbitServer(Server, Protocol):
    """A `Server` that is RabbitMQ.

    It notes the existence of a new quorum queue on disk after half a second or so: one that is
    younger at `kill` is lost with its confirmed messages, and has no leader afterwards.
    """

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on it and return what it printed; `ServerFailed` when that fails."""


@dataclass(frozen=True)
class Servers:
    """The two servers, and where they were found: ``urls``, ``docker`` or ``processes``."""

    mode: str
    rabbitmq: RabbitServer
    mongodb: Server


@contextmanager
def start_servers(mode: Mode = "auto") -> Iterator[Servers]:
    """Find or start RabbitMQ and MongoDB, ready to use, and end what was started.

    ``auto`` is what OUTPLAN_TEST_SERVERS says, else the first that can be had of: URLs in the
    environment, Docker, child processes. ``own`` is the same without the URLs, for servers that
    can be stopped. Raises `ServersUnavailable`.
    """
    with ExitStack() as stack:
        wanted = _wanted(mode)
        yield _first_own(stack) if wanted == "own" else _open(stack, wanted)


def _wanted(mode: Mode) -> str:
    said = os.environ.get(MODE_VARIABLE, "auto")
    wanted = said if mode == "auto" or (mode == "own" and said != "urls") else mode
    if wanted != "auto":
        return wanted
    given = os.environ.get(AMQP_VARIABLE) or os.environ.get(MONGO_VARIABLE)
    return "urls" if given and mode == "auto" else "own"


def _first_own(stack: ExitStack) -> Servers:
    tried = []
    for mode in ("docker", "processes"):
        try:
            return _open(stack, mode)
        except ServersUnavailable as error:
            # Not warnings.warn: where warnings are errors, the next mode would never be tried.
            level = logging.WARNING if isinstance(error, ServerFailed) else logging.INFO
            _log.log(level, "no servers by %s: %s", mode, error)
            tried.append(f"- {mode}: {error}")
    raise ServersUnavailable("\n".join([_NOTHING, *tried]))


def _open(stack: ExitStack, mode: str) -> Servers:
    openers = {"urls": _as_given, "docker": _in_docker, "processes": _as_processes}
    if mode not in openers:
        raise ServersUnavailable(f"{MODE_VARIABLE} is {mode!r}, not auto, {', '.join(openers)}")
    return stack.enter_context(openers[mode]())


def _as_given() -> AbstractContextManager[Servers]:
    from outplan.testing.given import given_servers  # noqa: PLC0415 - imports this module

    return given_servers()


def _in_docker() -> AbstractContextManager[Servers]:
    try:
        from outplan.testing.containers import container_servers  # noqa: PLC0415 - is optional
    except ImportError as error:
        raise ServersUnavailable(f"{error} (pip install 'outplan-service[testing]')") from error
    return container_servers()


def _as_processes() -> AbstractContextManager[Servers]:
    from outplan.testing.processes import process_servers  # noqa: PLC0415 - imports this module

    return process_servers()


class Runner(Protocol):
    """What a server runs in: a process group or a container. Every call may be repeated."""

    def launch(self) -> None:
        """Start it, or thaw it when it is frozen; don't wait until it is ready."""

    def terminate(self) -> bool:
        """Ask it to shut down and wait; false when it had to be killed in the end."""

    def kill(self) -> None: ...

    def freeze(self) -> bool:
        """Stop it from running on; false when it is not running at all."""

    def thaw(self) -> bool:
        """Let it run on; false when it is not running at all."""

    def ended(self, within: float) -> bool:
        """Wait up to `within` seconds for its end, and tell whether it has come."""

    def log(self) -> str:
        """Return the last lines that it printed."""


class OwnServer:
    """A `Server` in a `Runner`. `probe` returns the version, or raises while it is not ready."""

    name: str

    def __init__(self, url: str, port: int, runner: Runner, probe: Callable[[], str]) -> None:
        self.url = url
        self.version = ""
        self._port = port
        self._runner = runner
        self._probe = probe

    def start(self) -> None:
        self._runner.launch()
        deadline = monotonic() + _START_SECONDS
        while not self._ready(late=monotonic() > deadline):
            self._must(not self._runner.ended(within=0.05), "ended while it started")

    def stop(self) -> None:
        self._must(self._runner.terminate(), "did not shut down and was killed")

    def kill(self) -> None:
        self._runner.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        self._must(self._runner.freeze(), "is not running")

    def resume(self) -> None:
        self._must(self._runner.thaw(), "is not running")

    def _ready(self, *, late: bool) -> bool:
        try:
            # Spares the drivers, and their logs, the attempts before anybody listens.
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
            self.version = self._probe()
        except NOT_YET as error:
            self._must(not late, f"is not ready after {_START_SECONDS:.0f} s: {error!r}")
            return False
        return True

    def _must(self, complied: bool, complaint: str) -> None:
        if not complied:
            raise ServerFailed(f"{self.name} {complaint}. Its log ends:\n{self._runner.log()}")


class OwnRabbit(OwnServer):
    """A `RabbitServer` in a `Runner`, on `port` of this host; `ctl` runs rabbitmqctl in there."""

    name = "rabbitmq"

    def __init__(self, port: int, runner: Runner, ctl: Callable[[Sequence[str]], str]) -> None:
        url = f"amqp://guest:guest@127.0.0.1:{port}/"
        super().__init__(url, port, runner, lambda: broker_version(url))
        self._ctl = ctl

    def ctl(self, *arguments: str) -> str:
        return self._ctl(arguments)


class OwnMongo(OwnServer):
    """A MongoDB in a `Runner`, on `port` of this host: a replica set of one, for transactions."""

    name = "mongodb"

    def __init__(self, port: int, runner: Runner) -> None:
        url = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0"
        super().__init__(url, port, runner, lambda: _primary(port))


def _primary(port: int) -> str:
    """Return the version if the server is a writable primary, or help it to become one."""
    address = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    with MongoClient[dict[str, Any]](address, serverSelectionTimeoutMS=2_000) as client:
        hello = client.admin.command("hello")
        if hello["isWritablePrimary"]:
            return str(client.server_info()["version"])
        if hello.get("isreplicaset"):  # that is, it is to be one and knows no members yet
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            settings = {"electionTimeoutMillis": 1_000}
            config = {"_id": "rs0", "members": members, "settings": settings}
            client.admin.command("replSetInitiate", config)
    raise NotPrimaryError("no primary yet")


def broker_version(url: str) -> str:
    """Shake hands with RabbitMQ: its version. Raises one of `NOT_YET`."""

    async def shake_hands() -> str:
        async with await aio_pika.connect(url, timeout=10) as connection:
            transport: Any = connection.transport
            return str(transport.connection.server_properties["version"])

    with ThreadPoolExecutor(1) as pool:  # asyncio.run refuses a thread whose loop is running
        return pool.submit(asyncio.run, shake_hands()).result()


def store_version(url: str) -> str:
    """Ask MongoDB for its version. Raises one of `NOT_YET`."""
    with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=10_000) as client:
        return str(client.server_info()["version"])

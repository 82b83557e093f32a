"""The calls that every server offers to tests, wherever it runs."""

from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from outplan.testing.errors import NotControllable

Mode = Literal["auto", "own", "urls", "docker", "processes"]

MODE_VARIABLE = "OUTPLAN_TEST_SERVERS"
AMQP_VARIABLE = "OUTPLAN_TEST_AMQP_URL"
MONGO_VARIABLE = "OUTPLAN_TEST_MONGO_URL"


class Server(Protocol):
    """Control one server. Its URL and its data survive every call.

    Each call returns when it is done and may be repeated. Calls block for seconds: from an event
    loop use `asyncio.to_thread`. Do not call one server from two threads at once.

    All raise `ServerFailed` when the server does not obey, and `NotControllable` when it is not
    the tests' own.

    start    bring it back from any state and wait until it takes work
    stop     shut it down and wait for its exit
    kill     crash it: SIGKILL to all its processes
    restart  stop and start
    pause    hang it: it stays connected and answers nothing
    resume   end the pause
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
    """Control RabbitMQ.

    RabbitMQ writes a new quorum queue to disk after about half a second. `kill` before that loses
    the queue with its confirmed messages.
    """

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return its output. Raises `ServerFailed`."""


@dataclass(frozen=True)
class Servers:
    """RabbitMQ and MongoDB; ``mode`` says where they run: ``urls``, ``docker``, ``processes``."""

    mode: str
    rabbitmq: RabbitServer
    mongodb: Server


class ReadOnlyServer:
    """A `RabbitServer` or `Server` that tests use but do not control.

    ``why_not`` completes the sentence "rabbitmq …" in the `NotControllable` that control raises.
    """

    def __init__(self, name: str, url: str, version: str, why_not: str) -> None:
        self.name = name
        self.url = url
        self.version = version
        self._why_not = why_not

    def _refuse(self, *_: str) -> NoReturn:
        raise NotControllable(f"{self.name} {self._why_not}")

    start = stop = kill = restart = pause = resume = ctl = _refuse

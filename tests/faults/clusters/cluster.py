"""A RabbitMQ cluster and a MongoDB replica set, of three each, all on this machine."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, TypeVar

from bson import Timestamp
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from outplan.testing.processes import find_programs, reserved_ports, start_together
from outplan.testing.servers import ServerFailed
from outplan.testing.warden import last_will
from tests.faults.clusters.containers import rabbit_containers
from tests.faults.clusters.nodes import (
    PORTS,
    MongoMember,
    Ports,
    RabbitNode,
    mongo_members,
    rabbit_processes,
)
from tests.faults.clusters.status import hand_on, leader, survey, write_down
from tests.support.brokers import Broker

Asked = TypeVar("Asked")

_PATIENCE = 60.0
_POLL_SECONDS = 0.1
_ANSWER_MILLISECONDS = 2_000
# A primary that is gone is missed after three seconds: long enough that one which waits for its
# turn on a busy machine is not.
_SETTINGS = {"electionTimeoutMillis": 3_000, "heartbeatIntervalMillis": 500}
_MEMBER_STATES = {"PRIMARY", "SECONDARY"}


@dataclass(frozen=True)
class Cluster:
    """Three RabbitMQ nodes and three MongoDB members; each is a `Server` on its own.

    What is asked of the whole is asked of a node that answers. Every call blocks, by seconds: an
    event loop should make it by `asyncio.to_thread`. All raise `ServerFailed`.

    A RabbitMQ node that is started while the majority is down waits for it: bring several back
    by `start`. A queue that is declared while a node is down has no member on it.
    """

    rabbits: tuple[RabbitNode, ...]
    mongos: tuple[MongoMember, ...]

    @property
    def mongo_url(self) -> str:
        return f"mongodb://{','.join(member.address for member in self.mongos)}/?replicaSet=rs0"

    def start(self) -> None:
        """Bring back, all at the same time, whatever is down, paused or has fallen out.

        A RabbitMQ node that was paused for long may stay apart from the others, although it runs
        and sees them; it is killed and started, as an operator would.
        """
        start_together([*self.mongos, *self.rabbits])
        apart = self._apart()
        for node in apart:
            node.kill()
        start_together(apart)

    def healthy(self, seconds: float = _PATIENCE) -> None:
        """Wait until all nodes are up and in sync, and the set has a primary.

        A node is in sync when it has all that was committed once all of them were up.
        """
        deadline = monotonic() + seconds
        queues = _awaited(self._queues_of_all, deadline)
        written = _awaited(self._written_by_all, deadline)
        _awaited(lambda: self._require_queues(queues), deadline)
        _awaited(lambda: self._require_written(written), deadline)

    def primary(self, seconds: float = _PATIENCE) -> MongoMember:
        """Return the primary, or wait for one."""
        return _awaited(self._primary, monotonic() + seconds)

    def step_down(self, seconds: int = 10) -> MongoMember:
        """Have the primary step down, not to stand again for `seconds`, at least 2; return it."""
        member = self.primary()
        _command(member, "replSetStepDown", seconds, secondaryCatchUpPeriodSecs=seconds // 2)
        return member

    def leader_of(self, queue: str, seconds: float = _PATIENCE) -> RabbitNode:
        """Return the node that leads the quorum queue, or wait for one."""
        name = _awaited(lambda: leader(self._awake(), queue), monotonic() + seconds)
        return self._named(name)

    def move_leader(self, queue: str, seconds: float = _PATIENCE) -> RabbitNode:
        """Hand the quorum queue to another node, wait until that one leads it, and return it."""
        deadline = monotonic() + seconds
        name = _awaited(lambda: hand_on(self._awake(), queue), deadline)
        _awaited(lambda: self._require_leader(queue, name), deadline)
        return self._named(name)

    def write_down_queues(self) -> None:
        """Have all nodes write to disk which queues there are: a kill soon after loses them."""
        for node in self.rabbits:
            write_down(node)

    def _awake(self) -> RabbitNode:
        for node in self.rabbits:
            if node.answers():
                return node
        raise ServerFailed("no RabbitMQ node answers")

    def _apart(self) -> list[RabbitNode]:
        """Find the nodes that are not in the largest cluster that one of them sees."""
        views = [_view(node) for node in self.rabbits]
        largest = max(views, key=len)
        return [node for node in self.rabbits if node.name not in largest]

    def _named(self, name: str) -> RabbitNode:
        return next(node for node in self.rabbits if node.name == name)

    def _queues_of_all(self) -> dict[str, int]:
        for node in self.rabbits:
            _require(node.answers(), f"{node.name} does not answer")
        seen = survey(self.rabbits[0])
        missing = {node.name for node in self.rabbits} - seen.nodes
        _require(not missing, f"{', '.join(missing)} not in the cluster")
        return seen.committed()

    def _require_queues(self, goal: dict[str, int]) -> None:
        behind = survey(self.rabbits[0]).behind(goal)
        _require(not behind, f"members behind: {', '.join(behind)}")

    def _require_leader(self, queue: str, name: str) -> None:
        leads = leader(self._awake(), queue)
        _require(leads == name, f"{leads} still leads {queue}")

    def _written_by_all(self) -> Timestamp:
        members = _command(self._primary(), "replSetGetStatus")["members"]
        absent = [m["name"] for m in members if m["stateStr"] not in _MEMBER_STATES]
        _require(not absent, f"{', '.join(absent)} not in the set")
        newest: Timestamp = max(m["optime"]["ts"] for m in members)
        return newest

    def _require_written(self, goal: Timestamp) -> None:
        members = _command(self._primary(), "replSetGetStatus")["members"]
        behind = [m["name"] for m in members if m["optime"]["ts"] < goal]
        _require(not behind, f"members behind: {', '.join(behind)}")

    def _primary(self) -> MongoMember:
        # One that was cut off for a while may believe for a moment that it still is.
        claims = {}
        for member in self.mongos:
            hello = _hello(member)
            if hello.get("isWritablePrimary"):
                claims[hello["electionId"]] = member
        _require(bool(claims), "no primary")
        return claims[max(claims)]


def _view(node: RabbitNode) -> frozenset[str]:
    try:
        return survey(node).nodes
    except ServerFailed:  # it may be about to start again by itself
        return frozenset()


def _require(true: bool, complaint: str) -> None:
    if not true:
        raise ServerFailed(complaint)


def _awaited(ask: Callable[[], Asked], deadline: float) -> Asked:
    """Ask until there is an answer, at least once; at the deadline the last error is raised."""
    while True:
        try:
            return ask()
        except ServerFailed:
            if monotonic() > deadline:
                raise
        sleep(_POLL_SECONDS)


def _hello(member: MongoMember) -> dict[str, Any]:
    try:
        return _command(member, "hello")
    except ServerFailed:
        return {}


def _command(member: MongoMember, name: str, value: Any = 1, **options: Any) -> dict[str, Any]:
    try:
        with MongoClient[dict[str, Any]](
            member.url,
            serverSelectionTimeoutMS=_ANSWER_MILLISECONDS,
            timeoutMS=10 * _ANSWER_MILLISECONDS,
        ) as client:
            return client.admin.command(name, value, **options)
    except PyMongoError as error:
        raise ServerFailed(f"{member.name} does not do {name}: {error}") from error


@contextmanager
def cluster(broker: Broker = "3.10") -> Iterator[Cluster]:
    """Start a cluster, healthy and empty, and end it with the block or with this process.

    RabbitMQ 3.10 runs as child processes of the system's ``rabbitmq-server``, whatever version
    that is; 4 in containers. MongoDB runs as child processes. All listen on 127.0.0.1 alone.
    Raises `ServersUnavailable`.
    """
    programs = find_programs()
    folder = Path(tempfile.gettempdir(), f"outplan-cluster-{token_hex(8)}")
    with ExitStack() as stack:
        will = stack.enter_context(last_will("rm", "-rf", str(folder)))
        folder.mkdir(mode=0o700)
        ports = Ports.of(stack.enter_context(reserved_ports(PORTS)))
        mongos = mongo_members(programs, folder, ports, will)
        rabbits = stack.enter_context(
            rabbit_containers(ports)
            if broker == "4"
            else rabbit_processes(programs, folder, ports, will)
        )
        for server in (*mongos, *rabbits):
            stack.callback(server.kill)
        start_together(mongos)
        _initiate(mongos)
        start_together(rabbits)
        whole = Cluster(rabbits, mongos)
        whole.healthy()
        yield whole


def _initiate(mongos: tuple[MongoMember, ...]) -> None:
    members = [{"_id": n, "host": member.address} for n, member in enumerate(mongos)]
    config = {"_id": "rs0", "members": members, "settings": _SETTINGS}
    _command(mongos[0], "replSetInitiate", config)

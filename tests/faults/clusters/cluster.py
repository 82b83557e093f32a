"""Start a RabbitMQ cluster and a MongoDB replica set, of three each, on this machine."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import Any, TypeVar

from bson import Timestamp
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from outplan.testing.servers import ServerFailed, reserve_ports, start_together
from outplan.testing.servers.processes import find_programs
from outplan.testing.servers.supervisor import run_on_death
from tests.faults.clusters.containers import rabbit_containers
from tests.faults.clusters.nodes import (
    PORTS,
    MongoMember,
    Ports,
    RabbitNode,
    mongo_members,
    rabbit_processes,
)
from tests.faults.clusters.status import (
    find_leader,
    persist_queues,
    read_status,
    transfer_leadership,
)
from tests.support.brokers import Broker, find_image

Answer = TypeVar("Answer")

_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.1
_ANSWER_MILLISECONDS = 2_000
# Elect a new primary after three seconds; less would take a busy machine for a dead primary.
_SETTINGS = {"electionTimeoutMillis": 3_000, "heartbeatIntervalMillis": 500}
# When a node dies, RabbitMQ 4.3 keeps a queue for a minute for the consumer that was connected to
# it. Other versions do not know the setting and refuse to start with it.
_MORE_CONF: Mapping[Broker, str] = {"4.3": "consumer_disconnected_timeout = 1000\n"}
_MEMBER_STATES = {"PRIMARY", "SECONDARY"}


@dataclass(frozen=True)
class Cluster:
    """Three RabbitMQ nodes and three MongoDB members; each is a `Server` on its own.

    A question about the cluster goes to a node that answers. Every call blocks for seconds: use
    `asyncio.to_thread` on an event loop. All raise `ServerFailed`.

    A RabbitMQ node that starts while the majority is down waits for it: start several by `start`.
    A queue that is declared while a node is down has no member on it.
    """

    rabbits: tuple[RabbitNode, ...]
    mongos: tuple[MongoMember, ...]

    @property
    def mongo_url(self) -> str:
        return f"mongodb://{','.join(member.address for member in self.mongos)}/?replicaSet=rs0"

    def start(self) -> None:
        """Start at once all servers that are down, paused or separated.

        A RabbitMQ node that was paused for long may stay separated although it runs; kill and start
        it, as an operator would.
        """
        start_together([*self.mongos, *self.rabbits])
        separated = self._find_separated()
        for node in separated:
            node.kill()
        start_together(separated)

    def wait_until_healthy(self, seconds: float = _TIMEOUT_SECONDS) -> None:
        """Wait until all nodes are up and in sync, and the replica set has a primary.

        A node is in sync once it has everything that was committed when the last node came up.
        """
        deadline = monotonic() + seconds
        queues = _retry(self._commit_indexes, deadline)
        last_write = _retry(self._last_write, deadline)
        _retry(lambda: self._require_queues(queues), deadline)
        _retry(lambda: self._require_replicated(last_write), deadline)

    def primary(self, seconds: float = _TIMEOUT_SECONDS) -> MongoMember:
        """Return the primary; wait for one if there is none."""
        return _retry(self._primary, monotonic() + seconds)

    def step_down(self, seconds: int = 10) -> MongoMember:
        """Have the primary step down for `seconds`, at least 2, and return it."""
        member = self.primary()
        _command(member, "replSetStepDown", seconds, secondaryCatchUpPeriodSecs=seconds // 2)
        return member

    def leader_of(self, queue: str, seconds: float = _TIMEOUT_SECONDS) -> RabbitNode:
        """Return the node that leads the quorum queue; wait for one if there is none."""
        name = _retry(lambda: find_leader(self._answering_node(), queue), monotonic() + seconds)
        return self._node_named(name)

    def move_leader(self, queue: str, seconds: float = _TIMEOUT_SECONDS) -> RabbitNode:
        """Move the quorum queue's leader to another node, and return that node."""
        deadline = monotonic() + seconds
        name = _retry(lambda: transfer_leadership(self._answering_node(), queue), deadline)
        _retry(lambda: self._require_leader(queue, name), deadline)
        return self._node_named(name)

    def persist_queues(self) -> None:
        """Have all nodes write queue definitions to disk: a kill would lose new ones."""
        for node in self.rabbits:
            persist_queues(node)

    def _answering_node(self) -> RabbitNode:
        for node in self.rabbits:
            if node.is_answering():
                return node
        raise ServerFailed("no RabbitMQ node answers")

    def _find_separated(self) -> list[RabbitNode]:
        """Find the nodes outside the largest cluster that any node sees."""
        visible = [_visible_nodes(node) for node in self.rabbits]
        largest = max(visible, key=len)
        return [node for node in self.rabbits if node.name not in largest]

    def _node_named(self, name: str) -> RabbitNode:
        return next(node for node in self.rabbits if node.name == name)

    def _commit_indexes(self) -> dict[str, int]:
        for node in self.rabbits:
            _require(node.is_answering(), f"{node.name} does not answer")
        status = read_status(self.rabbits[0])
        missing = {node.name for node in self.rabbits} - status.nodes
        _require(not missing, f"{', '.join(missing)} not in the cluster")
        return status.commit_indexes()

    def _require_queues(self, goal: dict[str, int]) -> None:
        behind = read_status(self.rabbits[0]).behind(goal)
        _require(not behind, f"members behind: {', '.join(behind)}")

    def _require_leader(self, queue: str, name: str) -> None:
        leader = find_leader(self._answering_node(), queue)
        _require(leader == name, f"{leader} still leads the queue {queue}")

    def _last_write(self) -> Timestamp:
        members = _command(self._primary(), "replSetGetStatus")["members"]
        absent = [m["name"] for m in members if m["stateStr"] not in _MEMBER_STATES]
        _require(not absent, f"{', '.join(absent)} not in the set")
        newest: Timestamp = max(m["optime"]["ts"] for m in members)
        return newest

    def _require_replicated(self, goal: Timestamp) -> None:
        members = _command(self._primary(), "replSetGetStatus")["members"]
        behind = [m["name"] for m in members if m["optime"]["ts"] < goal]
        _require(not behind, f"members behind: {', '.join(behind)}")

    def _primary(self) -> MongoMember:
        # A former primary that was cut off may still claim the role for a moment.
        claims = {}
        for member in self.mongos:
            hello = _hello(member)
            if hello.get("isWritablePrimary"):
                claims[hello["electionId"]] = member
        _require(bool(claims), "no primary")
        return claims[max(claims)]


def _visible_nodes(node: RabbitNode) -> frozenset[str]:
    try:
        return read_status(node).nodes
    except ServerFailed:  # It may be restarting by itself.
        return frozenset()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ServerFailed(message)


def _retry(ask: Callable[[], Answer], deadline: float) -> Answer:
    """Call until it raises no ServerFailed; raise the last one at the deadline."""
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
        raise ServerFailed(f"{member.name} failed the command {name}: {error}") from error


@contextmanager
def start_cluster(broker: Broker = "3.10") -> Iterator[Cluster]:
    """Start a healthy, empty cluster; end it with the block or with this process.

    RabbitMQ 3.10 runs as child processes of the system's ``rabbitmq-server``, whatever its version;
    4.0 and 4.3 run in containers. MongoDB runs as child processes. All listen on 127.0.0.1 only.
    Raises `ServersUnavailable`.
    """
    programs = find_programs()
    folder = Path(tempfile.gettempdir(), f"outplan-cluster-{token_hex(8)}")
    with ExitStack() as stack:
        will = stack.enter_context(run_on_death("rm", "-rf", str(folder)))
        folder.mkdir(mode=0o700)
        ports = Ports.of(stack.enter_context(reserve_ports(PORTS)))
        mongos = mongo_members(programs, folder, ports, will)
        rabbits = stack.enter_context(
            rabbit_containers(ports, image, _MORE_CONF.get(broker, ""))
            if (image := find_image(broker))
            else rabbit_processes(programs, folder, ports, will)
        )
        for server in (*mongos, *rabbits):
            stack.callback(server.kill)
        start_together(mongos)
        _initiate_replica_set(mongos)
        start_together(rabbits)
        servers = Cluster(rabbits, mongos)
        servers.wait_until_healthy()
        yield servers


def _initiate_replica_set(mongos: tuple[MongoMember, ...]) -> None:
    members = [{"_id": n, "host": member.address} for n, member in enumerate(mongos)]
    config = {"_id": "rs0", "members": members, "settings": _SETTINGS}
    _command(mongos[0], "replSetInitiate", config)

"""Describe the members of a cluster: servers that can be killed or paused one by one."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from pymongo import MongoClient
from pymongo.errors import NotPrimaryError

from outplan.testing.servers import OwnRabbit, OwnServer, Runner
from outplan.testing.servers.processes import (
    Programs,
    configure,
    epmd_command,
    mongod_group,
    node_environment,
    rabbitmqctl,
)
from outplan.testing.servers.supervisor import ProcessGroup

SIZE = 3
NODES = tuple(f"rabbit{n}@localhost" for n in range(1, SIZE + 1))

# Three Erlang VMs share the processors: give each one scheduler, and no busy waiting.
ERLANG = "+S 1:1 +SDio 2 +sbwt none +sbwtdcpu none +sbwtdio none"
_CACHE_GIGABYTES = 0.25
# A node that is not paused answers an AMQP handshake within this time.
_ANSWER_SECONDS = 1.0

# The others drop a node that is paused for longer than the tick. autoheal restarts it from their
# state once it is resumed; pause_minority would keep it separated for ever. RabbitMQ 4.3 has no
# such setting: the metadata store is a Raft log, which the node catches up on.
CLUSTER_CONF = "".join(
    [
        "cluster_formation.peer_discovery_backend = classic_config\n",
        *(
            f"cluster_formation.classic_config.nodes.{n} = {node}\n"
            for n, node in enumerate(NODES, 1)
        ),
        "cluster_partition_handling = autoheal\n",
        "net_ticktime = 10\n",
    ]
)


@dataclass(frozen=True)
class Ports:
    """The ports of a cluster: three of each kind, and epmd's."""

    amqp: tuple[int, ...]
    distribution: tuple[int, ...]
    mongo: tuple[int, ...]
    names: int

    @classmethod
    def of(cls, free: Sequence[int]) -> "Ports":
        """Assign `PORTS` free ports."""
        amqp, distribution, mongo = (tuple(free[n::SIZE]) for n in range(SIZE))
        return cls(amqp[:SIZE], distribution, mongo, names=amqp[SIZE])


PORTS = 3 * SIZE + 1


class RabbitNode(OwnRabbit):
    """A `RabbitServer` that is a node of a cluster; ``name`` is its Erlang node name."""

    def __init__(
        self, name: str, port: int, runner: Runner, ctl: Callable[[Sequence[str]], str]
    ) -> None:
        super().__init__(port, runner, ctl, name)

    def is_answering(self) -> bool:
        """Return whether it takes connections and is not paused, within a second."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), _ANSWER_SECONDS) as caller:
                caller.sendall(b"AMQP\x00\x00\x09\x01")
                return caller.recv(1) != b""
        except OSError:
            return False


class MongoMember(OwnServer):
    """A `Server` that is a member of the replica set rs0; its URL leads to this member only."""

    def __init__(self, name: str, port: int, runner: Runner) -> None:
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        super().__init__(name, url, port, runner, lambda: _member_version(url))
        self.address = f"127.0.0.1:{port}"


def _member_version(url: str) -> str:
    with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=2_000) as client:
        hello = client.admin.command("hello")
        # isreplicaset: a member that has no configuration yet.
        if not (hello["isWritablePrimary"] or hello["secondary"] or hello.get("isreplicaset")):
            raise NotPrimaryError("neither primary nor secondary yet")
        return str(client.server_info()["version"])


def mongo_members(
    programs: Programs, folder: Path, ports: Ports, will: int
) -> tuple[MongoMember, ...]:
    return tuple(
        MongoMember(
            f"mongod{n}",
            port,
            mongod_group(programs, folder / f"mongod{n}", port, will, _CACHE_GIGABYTES),
        )
        for n, port in enumerate(ports.mongo, 1)
    )


@contextmanager
def rabbit_processes(
    programs: Programs, folder: Path, ports: Ports, will: int
) -> Iterator[tuple[RabbitNode, ...]]:
    """Prepare the nodes as child processes, and run the epmd that they need."""
    with ExitStack() as stack:
        names = folder / "epmd"
        names.mkdir()
        group = ProcessGroup([epmd_command(programs, ports.names)], {}, names, will)
        stack.callback(group.kill)
        group.launch()
        cookie = token_hex(16)
        yield tuple(
            _rabbit_process(
                programs, folder / name.partition("@")[0], name, (amqp, own), ports, will, cookie
            )
            for name, amqp, own in zip(NODES, ports.amqp, ports.distribution, strict=True)
        )


def _rabbit_process(
    programs: Programs,
    folder: Path,
    name: str,
    own: tuple[int, int],
    ports: Ports,
    will: int,
    cookie: str,
) -> RabbitNode:
    folder.mkdir()
    configure(folder, own[0], more=CLUSTER_CONF)
    _write_cookie(folder, cookie)
    environment = node_environment(folder, name, own[1], ports.names) | {
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG
    }
    group = ProcessGroup([[programs.rabbitmq_server]], environment, folder, will)
    return RabbitNode(name, own[0], group, rabbitmqctl(programs, name, environment))


def _write_cookie(folder: Path, cookie: str) -> None:
    file = folder / ".erlang.cookie"
    file.touch(0o600)
    file.write_text(cookie)
    file.chmod(0o400)

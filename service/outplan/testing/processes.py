"""The servers as private child processes, with all their files in one temporary folder."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import SystemRandom, token_hex

from outplan.testing.servers import (
    OwnMongo,
    OwnRabbit,
    Server,
    ServerFailed,
    Servers,
    ServersUnavailable,
)
from outplan.testing.warden import ProcessGroup, last_will

# Where Debian keeps the scripts that any user may run; those on its PATH are for root alone.
RABBITMQ_FOLDER = Path("/usr/lib/rabbitmq/bin")

# RabbitMQ forbids the Erlang VM's threads to spin before they sleep. A start makes 50,000 file
# look-ups, each of which then wakes a sleeping thread; less spinning than Erlang's own default
# halves the time.
SPIN = "+sbwt short +sbwtdio short"

# One network for all that speaks Erlang's own protocol, also rabbitmqctl; and no epmd but ours:
# one that the VM starts would be a daemon, and outlive everything.
_LOCAL_ERLANG = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
_NODE = "rabbit@localhost"
_RABBITMQ_CONF = """\
listeners.tcp.1 = 127.0.0.1:{port}
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 50MB
"""
_MANAGEMENT_CONF = """\
management.tcp.ip = 127.0.0.1
management.tcp.port = {port}
"""

_MONGOD_OPTIONS = (
    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "rs0"),
    *("--oplogSize", "256"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)

_NO_RABBITMQ = (
    "found no rabbitmq-server with rabbitmqctl and epmd (apt-get install rabbitmq-server)"
)
_NO_MONGOD = (
    "found no mongod (put one on the PATH, or on Linux on x86-64 "
    "pip install 'outplan-service[testing]')"
)

# Below the ports that the kernel gives to outgoing connections: one of those could otherwise
# take a server's port while it is stopped, and with it the server's URL.
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Programs:
    """The programs that make up the servers."""

    rabbitmq_server: str
    rabbitmqctl: str
    epmd: str
    mongod: str


@contextmanager
def process_servers(*, management_port: int | None = None) -> Iterator[Servers]:
    """Start both servers as child processes on free ports of 127.0.0.1.

    With ``management_port`` RabbitMQ has its management plugin, which serves HTTP there. Raises
    `ServersUnavailable` with what is missing.
    """
    programs = find_programs()
    folder = Path(tempfile.gettempdir(), f"outplan-servers-{token_hex(8)}")
    with ExitStack() as stack:
        will = stack.enter_context(last_will("rm", "-rf", str(folder)))
        folder.mkdir(mode=0o700)
        amqp, distribution, names, mongo = stack.enter_context(reserved_ports(4))
        home = folder / "rabbitmq"
        home.mkdir()
        configure(home, amqp, management_port)
        rabbitmq = _rabbitmq(programs, home, (amqp, distribution, names), will)
        mongodb = _mongodb(programs, folder / "mongodb", mongo, will)
        stack.callback(mongodb.kill)
        stack.callback(rabbitmq.kill)
        start_together([rabbitmq, mongodb])
        yield Servers("processes", rabbitmq, mongodb)


def find_programs() -> Programs:
    """Find the servers' programs, or raise `ServersUnavailable` with all that are missing."""
    server, ctl, epmd = _script("rabbitmq-server"), _script("rabbitmqctl"), shutil.which("epmd")
    mongod = shutil.which("mongod") or _packaged_mongod()
    if server and ctl and epmd and mongod:
        return Programs(server, ctl, epmd, mongod)
    missing = {_NO_RABBITMQ: server and ctl and epmd, _NO_MONGOD: mongod}
    raise ServersUnavailable("; ".join(what for what, found in missing.items() if not found))


def _script(name: str) -> str | None:
    return shutil.which(name, path=RABBITMQ_FOLDER) or shutil.which(name)


def _packaged_mongod() -> str | None:
    spec = find_spec("fiftyone")  # of the package only the folder is wanted: it is not imported
    for folder in (spec and spec.submodule_search_locations) or ():
        mongod = Path(folder, "db", "bin", "mongod")
        if mongod.is_file():
            _make_executable(mongod)
            return str(mongod)
    return None


def _make_executable(program: Path) -> None:
    if os.access(program, os.X_OK):
        return
    try:
        program.chmod(0o755)
    except PermissionError as error:
        raise ServersUnavailable(f"{program} must be made executable (chmod +x)") from error


def _mongodb(programs: Programs, folder: Path, port: int, will: int) -> OwnMongo:
    return OwnMongo(port, mongod_group(programs, folder, port, will))


def mongod_group(
    programs: Programs, folder: Path, port: int, will: int, cache_gigabytes: float = 0.5
) -> ProcessGroup:
    """Prepare a mongod of a replica set rs0 with its files in `folder`, which it makes."""
    data = folder / "data"
    data.mkdir(parents=True)
    own = ["--port", str(port), "--dbpath", str(data)]
    cache = ["--wiredTigerCacheSizeGB", str(cache_gigabytes)]
    command = [programs.mongod, *own, *_MONGOD_OPTIONS, *cache]
    return ProcessGroup([command], _environment(folder), folder, will)


def _rabbitmq(
    programs: Programs, folder: Path, ports: tuple[int, int, int], will: int
) -> OwnRabbit:
    amqp, distribution, names = ports
    environment = node_environment(folder, _NODE, distribution, names)
    group = ProcessGroup(
        [epmd(programs, names), [programs.rabbitmq_server]], environment, folder, will
    )
    return OwnRabbit(amqp, group, rabbitmqctl(programs, _NODE, environment))


def epmd(programs: Programs, port: int) -> list[str]:
    """Return the command for the server in which Erlang's nodes look each other's ports up."""
    return [programs.epmd, "-address", "127.0.0.1", "-port", str(port)]


def rabbitmqctl(
    programs: Programs, node: str, environment: Mapping[str, str]
) -> Callable[[Sequence[str]], str]:
    """Return what runs rabbitmqctl on `node`, in the node's own environment."""

    def ctl(arguments: Sequence[str]) -> str:
        return _run([programs.rabbitmqctl, "-n", node, "-q", *arguments], environment)

    return ctl


def enabled_plugins(*, management: bool) -> str:
    """Return what RabbitMQ's file of that name says."""
    plugins = ["rabbitmq_consistent_hash_exchange", *(["rabbitmq_management"] * management)]
    return f"[{','.join(plugins)}]."


def rabbitmq_conf(port: int) -> str:
    """Return a rabbitmq.conf that listens on `port` of 127.0.0.1 alone."""
    return _RABBITMQ_CONF.format(port=port)


def configure(folder: Path, port: int, management_port: int | None = None, more: str = "") -> None:
    """Write a RabbitMQ's settings to `folder`, with `more` lines of rabbitmq.conf."""
    managed = management_port is not None
    management = _MANAGEMENT_CONF.format(port=management_port) if managed else ""
    (folder / "rabbitmq.conf").write_text(rabbitmq_conf(port) + management + more)
    (folder / "enabled_plugins").write_text(enabled_plugins(management=managed))


def node_environment(folder: Path, node: str, distribution: int, names: int) -> dict[str, str]:
    """Return the environment of a RabbitMQ node with its files in `folder`, and of its tools.

    ``distribution`` is the node's port for Erlang's own protocol, ``names`` its epmd's. Every
    path is named that would otherwise be one in /etc or /var, and shared.
    """
    return (
        _environment(folder)
        | network_environment(distribution, names)
        | {
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": SPIN,
            # The script then becomes the Erlang VM instead of its parent: signals go to the VM.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
    )


def network_environment(distribution: int, names: int) -> dict[str, str]:
    """Keep Erlang's own protocol on 127.0.0.1, on the ports of the node and of its epmd."""
    return {
        # Erlang's tools would leave their dumps in the folder of whoever calls them.
        "ERL_CRASH_DUMP_SECONDS": "0",
        "ERL_EPMD_PORT": str(names),
        "ERL_FLAGS": _LOCAL_ERLANG,
        "RABBITMQ_DIST_PORT": str(distribution),
    }


def _environment(home: Path) -> dict[str, str]:
    """Keep out the settings of other servers; the Erlang cookie is made in `home`."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(home),
        "LANG": "C.UTF-8",
    }


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    result = subprocess.run(  # noqa: S603 - the commands are the tests' own
        command,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise ServerFailed(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout


def start_together(servers: Sequence[Server]) -> None:
    """Start all servers at the same time; when one fails, kill them all and raise its error."""
    with ThreadPoolExecutor() as pool:
        try:
            for start in as_completed(pool.submit(server.start) for server in servers):
                start.result()
        except BaseException:
            for server in servers:
                server.kill()
            raise


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Choose TCP ports of 127.0.0.1 that are free, and not chosen by any other session either."""
    with ExitStack() as stack:
        yield [stack.enter_context(_reserved()).getsockname()[1] for _ in range(count)]


def _reserved() -> socket.socket:
    # The UDP port of the same number is the lock: nobody needs it, the kernel lets one process
    # have it, and it is free again as soon as that process is gone.
    for port in SystemRandom().sample(_PORTS, 100):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            lock.close()
        else:
            return lock
    raise ServersUnavailable(f"no free port in {_PORTS}")

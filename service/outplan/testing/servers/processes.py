"""Run the servers as private child processes with their files in one temporary folder."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from outplan.testing.errors import ServerFailed, ServersUnavailable
from outplan.testing.servers.interface import Servers
from outplan.testing.servers.own import OwnRabbit, own_mongodb, start_together
from outplan.testing.servers.ports import reserve_ports
from outplan.testing.servers.supervisor import ProcessGroup, temporary_folder

# Debian keeps the scripts that any user may run here; those on its PATH need root.
RABBITMQ_FOLDER = Path("/usr/lib/rabbitmq/bin")

# RabbitMQ keeps the Erlang VM's threads from spinning before they sleep. A start makes 50,000 file
# look-ups, and each then wakes a sleeping thread. Some spinning halves the time of a start.
LESS_SPINNING = "+sbwt short +sbwtdio short"

# For the node and for rabbitmqctl: Erlang's own protocol on 127.0.0.1 only, and no epmd but ours.
# An epmd that the VM starts is a daemon and outlives the tests.
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


@dataclass(frozen=True)
class Programs:
    """The paths of the servers' programs."""

    rabbitmq_server: str
    rabbitmqctl: str
    epmd: str
    mongod: str


@contextmanager
def process_servers(*, management_port: int | None = None) -> Iterator[Servers]:
    """Start both servers as child processes on free ports of 127.0.0.1.

    With ``management_port`` RabbitMQ has its management plugin, which serves HTTP there. Raises
    `ServersUnavailable`, whose text names missing programs.
    """
    programs = find_programs()
    with ExitStack() as stack:
        folder, death_fd = stack.enter_context(temporary_folder("servers"))
        amqp, distribution, names, mongo = stack.enter_context(reserve_ports(4))
        home = folder / "rabbitmq"
        home.mkdir()
        configure(home, amqp, management_port)
        rabbitmq = _rabbitmq(programs, home, (amqp, distribution, names), death_fd)
        mongodb = own_mongodb(mongo, mongod_group(programs, folder / "mongodb", mongo, death_fd))
        stack.callback(mongodb.kill)
        stack.callback(rabbitmq.kill)
        start_together([rabbitmq, mongodb])
        yield Servers("processes", rabbitmq, mongodb)


def find_programs() -> Programs:
    """Find the servers' programs. Raises `ServersUnavailable` with all that are missing."""
    server, ctl, epmd = _script("rabbitmq-server"), _script("rabbitmqctl"), shutil.which("epmd")
    mongod = shutil.which("mongod") or _packaged_mongod()
    if server and ctl and epmd and mongod:
        return Programs(server, ctl, epmd, mongod)
    missing = {_NO_RABBITMQ: server and ctl and epmd, _NO_MONGOD: mongod}
    raise ServersUnavailable("; ".join(text for text, found in missing.items() if not found))


def _script(name: str) -> str | None:
    return shutil.which(name, path=RABBITMQ_FOLDER) or shutil.which(name)


def _packaged_mongod() -> str | None:
    spec = find_spec("fiftyone")  # to find its folder without importing it
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


def mongod_group(
    programs: Programs, folder: Path, port: int, death_fd: int, cache_gigabytes: float = 0.5
) -> ProcessGroup:
    """Prepare a mongod of a replica set rs0 in a new folder."""
    data = folder / "data"
    data.mkdir(parents=True)
    own = ["--port", str(port), "--dbpath", str(data)]
    cache = ["--wiredTigerCacheSizeGB", str(cache_gigabytes)]
    command = [programs.mongod, *own, *_MONGOD_OPTIONS, *cache]
    return ProcessGroup([command], _environment(folder), folder, death_fd)


def _rabbitmq(
    programs: Programs, folder: Path, ports: tuple[int, int, int], death_fd: int
) -> OwnRabbit:
    amqp, distribution, names = ports
    environment = node_environment(folder, _NODE, distribution, names)
    group = ProcessGroup(
        [epmd_command(programs, names), [programs.rabbitmq_server]], environment, folder, death_fd
    )
    return OwnRabbit(amqp, group, rabbitmqctl(programs, _NODE, environment))


def epmd_command(programs: Programs, port: int) -> list[str]:
    """Return the command for epmd, which tells Erlang's nodes each other's ports."""
    return [programs.epmd, "-address", "127.0.0.1", "-port", str(port)]


def rabbitmqctl(
    programs: Programs, node: str, environment: Mapping[str, str]
) -> Callable[[Sequence[str]], str]:
    """Return a function that runs rabbitmqctl on `node` and returns its output.

    The function raises `ServerFailed`.
    """

    def ctl(arguments: Sequence[str]) -> str:
        return _run([programs.rabbitmqctl, "-n", node, "-q", *arguments], environment)

    return ctl


def enabled_plugins(*, management: bool) -> str:
    """Return the text of RabbitMQ's file enabled_plugins."""
    return "[rabbitmq_management]." if management else "[]."


def rabbitmq_conf(port: int) -> str:
    """Return a rabbitmq.conf that listens on `port` of 127.0.0.1 only."""
    return _RABBITMQ_CONF.format(port=port)


def configure(folder: Path, port: int, management_port: int | None = None, more: str = "") -> None:
    """Write RabbitMQ's settings to `folder`, with `more` lines for rabbitmq.conf."""
    managed = management_port is not None
    management = _MANAGEMENT_CONF.format(port=management_port) if managed else ""
    (folder / "rabbitmq.conf").write_text(rabbitmq_conf(port) + management + more)
    (folder / "enabled_plugins").write_text(enabled_plugins(management=managed))


def node_environment(folder: Path, node: str, distribution: int, names: int) -> dict[str, str]:
    """Return the environment of a RabbitMQ node with its files in `folder`, and of its tools.

    ``distribution`` is the node's port for Erlang's own protocol, ``names`` that of its epmd. The
    paths replace the defaults in /etc and /var, which all nodes would share.
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
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": LESS_SPINNING,
            # The script then replaces itself by the Erlang VM, so that signals reach the VM.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
    )


def network_environment(distribution: int, names: int) -> dict[str, str]:
    """Return the environment that keeps Erlang's own protocol on 127.0.0.1 and these ports."""
    return {
        # Erlang's tools would write crash dumps to the current folder.
        "ERL_CRASH_DUMP_SECONDS": "0",
        "ERL_EPMD_PORT": str(names),
        "ERL_FLAGS": _LOCAL_ERLANG,
        "RABBITMQ_DIST_PORT": str(distribution),
    }


def _environment(home: Path) -> dict[str, str]:
    """Return an environment without the settings of other servers; `home` gets the cookie."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "HOME": str(home),
        "LANG": "C.UTF-8",
    }


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    result = subprocess.run(  # noqa: S603 - the commands are fixed
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

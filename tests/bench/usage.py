"""CPU time in seconds: the kernel's account of local processes, and MongoDB's of itself."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"  # a socket's state in proc(5), net/tcp


class Usage(NamedTuple):
    """CPU seconds, or None where they cannot be had: a server on another machine."""

    worker: float | None
    broker: float | None
    store: float | None

    def since(self, before: "Usage") -> "Usage":
        """What was used between the two."""
        return Usage(*(_difference(a, b) for a, b in zip(self, before, strict=True)))

    def per(self, count: int) -> "Usage":
        """Each of them divided by ``count``."""
        return Usage(*(None if seconds is None else seconds / count for seconds in self))


def tree_seconds(root: int | None) -> float | None:
    """What a process and its living descendants have used."""
    processes = dict(_processes())
    if root not in processes:
        return None
    family, grown = {root}, 0
    while grown < len(family):
        grown = len(family)
        family |= {pid for pid, fields in processes.items() if int(fields[1]) in family}
    return sum(int(processes[pid][n]) for pid in family for n in (11, 12)) / _TICKS


def mongod_seconds(server_status: dict[str, Any]) -> float | None:
    """What mongod says that it has used; it may be out of reach in a container."""
    info = server_status.get("extra_info", {})
    if "user_time_us" not in info:
        return None
    return float(info["user_time_us"] + info["system_time_us"]) / 1e6


def find_broker(cluster_name: str, port: int) -> int | None:
    """The pid of the RabbitMQ node with this name and port, where it is to be seen from here."""
    # Its command line tools run on the same virtual machine, but boot nothing.
    nodes = [pid for pid, _ in _processes() if "\0rabbit\0boot\0" in _text(pid, "cmdline")]
    # In a container the port is another one, but the host in the node's name is the container's.
    host = f"\0HOSTNAME={cluster_name.partition('@')[2]}\0"
    found = [pid for pid in nodes if host in f"\0{_text(pid, 'environ')}"]
    found = found or [pid for pid in nodes if _listens(pid, port)]
    return found[0] if len(found) == 1 else None


def _listens(pid: int, port: int) -> bool:
    """Whether one of the process's own sockets listens on this TCP port."""
    sockets = {
        f"socket:[{fields[9]}]"
        for table in ("net/tcp", "net/tcp6")
        for fields in map(str.split, _text(pid, table).splitlines()[1:])
        if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port
    }
    return not sockets.isdisjoint(_open_files(pid))


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(file) for file in (_PROC / str(pid) / "fd").iterdir()}
    except OSError:  # It has closed one of them meanwhile, or belongs to someone else.
        return set()


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Each process with its ``stat`` from the state on, which comes third in proc(5)."""
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (stat := _text(int(folder.name), "stat")):
            # The name, second in parentheses, may hold blanks.
            yield int(folder.name), stat.rpartition(")")[2].split()


def _text(pid: int, file: str) -> str:
    try:
        return (_PROC / str(pid) / file).read_text(errors="replace")
    except OSError:  # It has ended, or belongs to someone else.
        return ""


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before

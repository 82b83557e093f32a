"""Read CPU time in seconds: of local processes from /proc, of MongoDB from its server status."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.process_state import find_listener

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


class Usage(NamedTuple):
    """CPU seconds of each program, or None if unknown (a server on another machine)."""

    worker: float | None
    broker: float | None
    store: float | None

    def subtract(self, before: "Usage") -> "Usage":
        """Return the CPU time used since ``before``."""
        return Usage(*(_subtract(a, b) for a, b in zip(self, before, strict=True)))

    def divide(self, count: int) -> "Usage":
        """Divide each CPU time by ``count``."""
        return Usage(*(None if seconds is None else seconds / count for seconds in self))


def read_tree_seconds(root: int | None) -> float | None:
    """Add up the CPU time of a process and its living descendants; None if it has ended."""
    processes = dict(_processes())
    if root not in processes:
        return None
    family, known = {root}, 0
    while known < len(family):
        known = len(family)
        family |= {pid for pid, fields in processes.items() if int(fields[1]) in family}
    return sum(int(processes[pid][n]) for pid in family for n in (11, 12)) / _TICKS


def parse_mongod_seconds(server_status: dict[str, Any]) -> float | None:
    """Return mongod's own CPU time from its ``serverStatus``; None if it does not report it."""
    info = server_status.get("extra_info", {})
    if "user_time_us" not in info:
        return None
    return float(info["user_time_us"] + info["system_time_us"]) / 1e6


def find_broker(cluster_name: str, port: int) -> int | None:
    """Find the pid of the RabbitMQ node with this name or port; None if not on this machine."""
    # RabbitMQ's command line tools also run as Erlang processes, but without "-s rabbit boot".
    nodes = [pid for pid, _ in _processes() if "\0rabbit\0boot\0" in _read(pid, "cmdline")]
    # A container maps the port to another one, but its host name is part of the node's name.
    host = f"\0HOSTNAME={cluster_name.partition('@')[2]}\0"
    found = [pid for pid in nodes if host in f"\0{_read(pid, 'environ')}"]
    return found[0] if len(found) == 1 else find_listener("beam.smp", port)


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield each process with the fields of its ``stat`` after the name: index 0 is the state."""
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (stat := _read(int(folder.name), "stat")):
            # The name, in parentheses, may contain spaces.
            yield int(folder.name), stat.rpartition(")")[2].split()


def _read(pid: int, file: str) -> str:
    try:
        return (_PROC / str(pid) / file).read_text(errors="replace")
    except OSError:  # It has ended, or belongs to another user.
        return ""


def _subtract(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before

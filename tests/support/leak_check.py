"""Find processes that a test run left behind, and the addresses on which processes listen."""

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

SERVER_PROGRAMS = {"beam.smp", "epmd", "mongod"}
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
WAIT_SECONDS = 30.0


class Process(NamedTuple):
    """A process, identified by its id and start time."""

    pid: int
    started: str
    name: str


def find_processes_with(setting: str) -> list[int]:
    """Return the pids of all processes with this ``NAME=value`` in their environment."""
    return [
        int(environ.parent.name)
        for environ in Path("/proc").glob("[0-9]*/environ")
        if setting in _read(environ).split("\0")
    ]


def wait_until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Poll until ``condition`` is true; fail after so many seconds."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline
        sleep(0.05)


def find_descendants(ancestor: int) -> set[Process]:
    """Return all processes that descend from the ancestor."""
    children: dict[int, set[Process]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if status := read_process(path.name):
            children.setdefault(status[1], set()).add(status[0])
    found, left = set[Process](), [ancestor]
    while left:
        born = children.get(left.pop(), set())
        found |= born
        left += [child.pid for child in born]
    return found


def any_alive(processes: set[Process]) -> bool:
    """Return True if any of the processes still runs."""
    return any((status := read_process(it.pid)) and status[0] == it for it in processes)


def find_listening_addresses(processes: set[Process]) -> set[str]:
    """Return the addresses of all listening TCP sockets of the processes."""
    inodes = {
        os.readlink(descriptor).strip("socket:[]")
        for process in processes
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir()
        if descriptor.is_socket()
    }
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


def read_process(pid: int | str) -> tuple[Process, int] | None:
    """Return the process and its parent's id, or None when it is gone or a zombie."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = rest.split()
    return None if fields[0] in "ZX" else (Process(int(pid), fields[19], name), int(fields[1]))


def _read(environ: Path) -> str:
    try:
        return environ.read_text(errors="replace")
    except OSError:
        return ""

"""Read a process's state from /proc (see proc(5)): memory, open files, connections."""

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_ESTABLISHED: Final = "01"
_LISTENING: Final = "0A"


def resident_bytes(pid: int) -> int:
    """Return the resident memory. Raises OSError if the process is gone."""
    return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE


def is_suspended(pid: int) -> bool:
    """Return whether SIGSTOP holds the process. Raises OSError if the process is gone."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def open_files(pid: int) -> list[str]:
    """Return the targets of its file descriptors: paths, or ``socket:[inode]``. Raises OSError."""
    found = []
    for link in (_PROC / str(pid) / "fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # It was closed since.
            continue
    return found


def count_connections(pid: int, files: list[str], port: int) -> int:
    """Count the established TCP connections to a port among its open files. Raises OSError."""
    sockets = _sockets(pid, _ESTABLISHED, remote=port)
    return sum(file in sockets for file in files)


def find_listener(name: str, port: int) -> int | None:
    """Return the pid of the process of this name that listens on a port, if it is visible."""
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (pid := int(folder.name)) and _name(pid) == name:
            try:
                if _sockets(pid, _LISTENING, local=port) & set(open_files(pid)):
                    return pid
            except OSError:  # It ended, or belongs to another user.
                continue
    return None


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _sockets(
    pid: int, state: str, *, local: int | None = None, remote: int | None = None
) -> set[str]:
    """Return the TCP sockets in a state that a process can see, by local or remote port."""
    tables = (_PROC / str(pid) / "net" / table for table in ("tcp", "tcp6"))
    rows = (line.split() for table in tables for line in table.read_text().splitlines()[1:])
    return {
        f"socket:[{fields[9]}]"
        for fields in rows
        if fields[3] == state
        and local in (None, _port(fields[1]))
        and remote in (None, _port(fields[2]))
    }


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)

"""Share one pair of servers among all processes of a test run under xdist.

The first process that needs servers starts the holder, ``python -m
outplan.testing.servers.shared FOLDER``. The holder starts the servers, prints where they are, and
ends them when the run's first process releases its lock in the folder. The kernel releases it
even if that process was killed.
"""

import fcntl
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from outplan.testing.errors import ServersUnavailable
from outplan.testing.run_lock import lock_file
from outplan.testing.servers.interface import ReadOnlyServer, Server, Servers
from outplan.testing.servers.start import start_servers

_WHY_NOT: Final = (
    "is shared with the run's other processes, whose tests need it; "
    "mark the test with @pytest.mark.outplan_own_servers for servers of its own"
)


def shared_servers(folder: Path) -> Servers:
    """Return the run's servers; start them if no process has yet. Raises ServersUnavailable."""
    file = folder / "servers.json"
    with lock_file(folder / "starting"):
        if not file.exists():
            file.write_text(_start_holder(folder))
    found = json.loads(file.read_text())
    if "error" in found:
        raise ServersUnavailable(found["error"])
    rabbitmq, mongodb = (
        ReadOnlyServer(**found[name], why_not=_WHY_NOT) for name in ("rabbitmq", "mongodb")
    )
    return Servers(found["mode"], rabbitmq, mongodb)


def _start_holder(folder: Path) -> str:
    """Start the holder and return the line of JSON that it prints."""
    with (folder / "holder.log").open("wb") as log:
        holder = subprocess.Popen(  # noqa: S603 - the command is fixed
            [sys.executable, "-m", __name__, str(folder)],
            cwd=folder,  # the tests' folder might have another package called outplan
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C ends it through the end of the run, not before
        )
    assert holder.stdout is not None
    with holder.stdout as output:
        line = output.readline()
    # It outlives this process: set an exit code so that subprocess does not warn of it.
    holder.returncode = 0
    error = f"the process that holds the servers exited:\n{(folder / 'holder.log').read_text()}"
    return line or json.dumps({"error": error})


def _hold(folder: Path) -> None:
    with (folder / "run").open("rb") as run:
        try:
            with start_servers() as servers:
                found = {it.name: _describe(it) for it in (servers.rabbitmq, servers.mongodb)}
                _print({"mode": servers.mode, **found})
                fcntl.flock(run, fcntl.LOCK_EX)
                # If the first process was killed, its folder is still there.
                shutil.rmtree(folder, ignore_errors=True)
        except ServersUnavailable as error:
            _print({"error": str(error)})


def _describe(server: Server) -> dict[str, str]:
    return {"name": server.name, "url": server.url, "version": server.version}


def _print(message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the process that asked was killed meanwhile
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    _hold(Path(sys.argv[1]))

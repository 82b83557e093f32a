"""One pair of servers for all processes of a test run, and the process that holds them.

Whoever of the run needs servers first starts the holder, ``python -m outplan.testing.shared RUN``.
It starts the servers, says where they are, and ends them as soon as nobody holds the lock in the
folder RUN any more: that is the run's first process, whose end gives a lock back even if it was
killed.
"""

import fcntl
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from outplan.testing.run import locked
from outplan.testing.servers import (
    NotControllable,
    Server,
    Servers,
    ServersUnavailable,
    start_servers,
)


def shared_servers(folder: Path) -> Servers:
    """The run's servers, started where they are not yet. Raises ServersUnavailable."""
    told = folder / "servers.json"
    with locked(folder / "starting"):
        if not told.exists():
            told.write_text(_started(folder))
    found = json.loads(told.read_text())
    if "error" in found:
        raise ServersUnavailable(found["error"])
    rabbitmq, mongodb = (SharedServer(**found[name]) for name in ("rabbitmq", "mongodb"))
    return Servers(found["mode"], rabbitmq, mongodb)


class SharedServer:
    """A `RabbitServer` or `Server` that all processes of the run use at the same time."""

    def __init__(self, name: str, url: str, version: str) -> None:
        self.name = name
        self.url = url
        self.version = version

    def _refuse(self, *_: str) -> NoReturn:
        raise NotControllable(
            f"{self.name} is shared with the run's other processes, whose tests need it; "
            "mark the test with @pytest.mark.outplan_own_servers for servers of its own"
        )

    start = stop = kill = restart = pause = resume = ctl = _refuse


def _started(folder: Path) -> str:
    """Start the holder; the line that it says, which is JSON."""
    with (folder / "holder.log").open("wb") as log:
        holder = subprocess.Popen(  # noqa: S603 - the command is our own
            [sys.executable, "-m", "outplan.testing.shared", str(folder)],
            cwd=folder,  # from a tester's folder it might import another package of our name
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C ends it by the end of the run, not before
        )
    assert holder.stdout is not None
    with holder.stdout as said:
        line = said.readline()
    # It outlives this process: that it has an exit code is for nobody here to know.
    holder.returncode = 0
    complaint = f"what holds the servers ended:\n{(folder / 'holder.log').read_text()}"
    return line or json.dumps({"error": complaint})


def _hold(folder: Path) -> None:
    with (folder / "run").open("rb") as run:
        try:
            with start_servers() as servers:
                _say({"mode": servers.mode, **{it.name: _told(it) for it in _both(servers)}})
                fcntl.flock(run, fcntl.LOCK_EX)
                # Whoever was killed has left it behind.
                shutil.rmtree(folder, ignore_errors=True)
        except ServersUnavailable as error:
            _say({"error": str(error)})


def _both(servers: Servers) -> tuple[Server, Server]:
    return servers.rabbitmq, servers.mongodb


def _told(server: Server) -> dict[str, str]:
    return {"name": server.name, "url": server.url, "version": server.version}


def _say(what: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # whoever asked was killed in the meantime
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _hold(Path(sys.argv[1]))

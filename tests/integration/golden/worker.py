"""Run ``outplan run`` as an operator does: environment in, log lines out."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tests.integration.golden.scenario import Place

# The command that comes with the environment's Python.
COMMAND: Final = (str(Path(sys.executable).with_name("outplan")), "run")
_READY: Final = '"event": "ready"'
_SECONDS: Final = 60.0


class Worker:
    """A worker process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines: list[str] = []
        self._ready = threading.Event()
        assert process.stdout is not None
        self._reading = threading.Thread(target=self._read, args=[process.stdout])
        self._reading.start()

    def await_ready(self) -> None:
        """Await the log line that says that it consumes."""
        self._ready.wait(_SECONDS)
        assert any(_READY in line for line in self._lines), f"not ready:\n{self.log()}"

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self._process.terminate()
        return self._process.wait(_SECONDS)

    def close(self) -> None:
        """Kill it if it still runs, and let go of its output."""
        self._process.kill()
        self._process.wait()
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def log(self) -> str:
        """Return the end of what it printed."""
        return "".join(self._lines[-20:])

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.append(line)
            if _READY in line:
                self._ready.set()
        # It ended: nothing more is to be waited for.
        self._ready.set()


@contextmanager
def running_worker(place: Place, command: Sequence[str] = COMMAND) -> Iterator[Worker]:
    """Run a worker at a place until the block ends, and check that it exits with 0."""
    process = subprocess.Popen(
        command,
        env=_environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    worker = Worker(process)
    try:
        worker.await_ready()
        yield worker
        assert worker.stop() == 0, f"the worker did not end well:\n{worker.log()}"
    finally:
        worker.close()


def _environment(place: Place) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("OUTPLAN_")}
    return {
        **others,
        "OUTPLAN_AMQP_URL": place.amqp_url,
        "OUTPLAN_MONGO_URL": place.mongo_url,
        "OUTPLAN_MONGO_DATABASE": place.database,
        "OUTPLAN_PREFIX": place.prefix,
        "OUTPLAN_HTTP_PORT": "0",
        "OUTPLAN_LOG_FORMAT": "json",
    }

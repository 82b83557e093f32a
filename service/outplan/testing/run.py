"""A test run as its processes know it: a folder, and a lock that lasts as long as the run.

Imported in each run under xdist, so it needs nothing but the standard library.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_run() -> Iterator[Path]:
    """A folder whose lock ``run`` this process holds until the block or the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="outplan-run-"))
    try:
        with locked(folder / "run"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have the lock while the block runs; whoever else wants it waits."""
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Lock a folder for as long as a test run lasts.

The plugin imports this in each run under xdist, so it uses the standard library alone.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_run() -> Iterator[Path]:
    """Yield a folder, and hold the lock ``run`` in it until the block or this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="outplan-run-"))
    try:
        with lock_file(folder / "run"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it while the block runs."""
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

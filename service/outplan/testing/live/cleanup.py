"""Remove what a killed test leaves behind.

The test's folder is removed by `run_on_death`. On servers that outlive the tests its queues and
its database remain as well: then the folder holds a note of them, and ``python -m
outplan.testing.live.cleanup FOLDER`` drops them first.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from outplan.testing.deployment import Deployment
from outplan.testing.servers.supervisor import run_on_death

_NOTE: Final = "deployment.json"
# -P: the tests' folder might have another package called outplan.
_ON_DEATH: Final = f"""
[ ! -e "$1/{_NOTE}" ] || "$0" -P -m {__name__} "$1"
rm -rf "$1"
"""


@contextmanager
def open_folder(
    deployment: Deployment, further_queues: Sequence[str] | None
) -> Iterator[tuple[Path, int]]:
    """Yield a folder and the descriptor of its `run_on_death`; remove the folder at the end.

    If the tests are killed, the deployment and further queues are dropped too. Pass None for
    queues to leave the deployment, on servers that end with the tests.
    """
    folder = Path(tempfile.gettempdir(), f"outplan-{deployment.prefix}")
    with run_on_death("sh", "-c", _ON_DEATH, sys.executable, str(folder)) as death_fd:
        folder.mkdir(mode=0o700)
        note = folder / _NOTE
        if further_queues is not None:
            note.write_text(json.dumps([asdict(deployment), *further_queues]))
        try:
            yield folder, death_fd
        finally:
            note.unlink(missing_ok=True)


def _drop_noted(folder: Path) -> None:
    fields, *further_queues = json.loads((folder / _NOTE).read_text())
    asyncio.run(Deployment(**fields).drop(further_queues))


if __name__ == "__main__":
    _drop_noted(Path(sys.argv[1]))

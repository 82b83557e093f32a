"""What a test leaves behind when it is killed, and who takes it away.

Its folder goes by a last will. On servers that outlive the tests there are its queues and its
database as well: then the folder has a note of them, and ``python -m outplan.testing.leavings
FOLDER`` is in the will.
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

from outplan.testing.place import Place, clear
from outplan.testing.warden import last_will

_NOTE: Final = "place.json"
# Not from the folder that the tests run in: it might have another package of our name.
_WILL: Final = f"""
[ ! -e "$1/{_NOTE}" ] || "$0" -P -m outplan.testing.leavings "$1"
rm -rf "$1"
"""


@contextmanager
def folder_of(place: Place, queues: Sequence[str] | None) -> Iterator[tuple[Path, int]]:
    """A folder, and the will by which it goes when all who hold that are gone.

    If the block is not left, because the tests are killed, whatever a worker has declared and
    stored at the place goes too, and with it these queues; None leaves all that where it is.
    """
    folder = Path(tempfile.gettempdir(), f"outplan-{place.prefix}")
    with last_will("sh", "-c", _WILL, sys.executable, str(folder)) as will:
        folder.mkdir(mode=0o700)
        note = folder / _NOTE
        if queues is not None:
            note.write_text(json.dumps([asdict(place), *queues]))
        try:
            yield folder, will
        finally:
            note.unlink(missing_ok=True)


def _take_away(folder: Path) -> None:
    place, *queues = json.loads((folder / _NOTE).read_text())
    asyncio.run(clear(Place(**place), queues))


if __name__ == "__main__":
    _take_away(Path(sys.argv[1]))

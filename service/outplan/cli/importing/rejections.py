"""The lines that an import had to leave out, in a file that can be mended and imported."""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import orjson

from outplan.cli.importing.lines import Line
from outplan.contract.messages import Problem

_QUOTED_CHARACTERS: Final = 1_000


class Rejections:
    """JSON Lines, in a file that is made anew with the first rejection, and not without one.

    ``more`` adds to those of an import that this one goes on with. That may have read further
    than it has judged: what stands there to the letter is not added again, and so imported twice.
    """

    def __init__(self, path: Path, *, more: bool = False) -> None:
        self.path = path
        self._more = more
        self._there = frozenset[int]()
        self._file: BinaryIO | None = None

    @property
    def any(self) -> bool:
        return self._file is not None

    def write(self, line: Line, message_id: str | None, problem: Problem) -> None:
        """Keep a line with what is wrong with it. Raises OSError."""
        if self._file is None:
            self._file = self._open()
        entry = {
            "line": line.number,
            "message_id": message_id,
            "problem": problem.model_dump(exclude_none=True),
            "content": _content(line),
        }
        written = orjson.dumps(entry) + b"\n"
        if hash(written) not in self._there:
            self._file.write(written)

    def _open(self) -> BinaryIO:
        if not self._more:
            return self.path.open("wb")
        if self.path.is_file():
            with self.path.open("rb") as there:
                self._there = frozenset(map(hash, there))
        return self.path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def _content(line: Line) -> orjson.Fragment | str:
    """JSON as it stands; what is none, or endless, as text."""
    text = line.content.decode(errors="replace")
    if line.overlong:
        return text[:_QUOTED_CHARACTERS] + "…"
    try:
        orjson.loads(line.content)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(line.content)

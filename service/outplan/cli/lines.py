"""Read the lines of a file or of standard input in bounded memory."""

import asyncio
import io
import os
import stat
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Thread
from typing import Final

from outplan.contract.fields import MAX_BODY_BYTES

# A body of the largest size with every byte escaped as \u00xx, and room for the rest of the line.
MAX_LINE_BYTES: Final = 7 * MAX_BODY_BYTES

_CHUNK: Final = 65_536
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """Hold a line without its line break.

    ``number`` counts from 1, ``size`` is in bytes, and ``end`` is the offset of the next line. Of
    a line that ``is_overlong``, ``content`` holds the first MAX_LINE_BYTES only.
    """

    number: int
    content: bytes
    size: int
    end: int

    @property
    def is_overlong(self) -> bool:
        return self.size > MAX_LINE_BYTES


class LineSplitter:
    """Split bytes that come in pieces into lines."""

    def __init__(self) -> None:
        self._number = 0
        self._end = 0
        self._buffer = bytearray()
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[Line]:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            self._add(end)
            self._end += 1
            yield self._end_line()
        self._add(rest)

    def close(self) -> Iterator[Line]:
        """Return the last line if no line break ends it."""
        if self._size:
            yield self._end_line()

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._end += len(part)
        self._buffer += part[: MAX_LINE_BYTES - len(self._buffer)]

    def _end_line(self) -> Line:
        self._number += 1
        content = bytes(self._buffer)
        if self._number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        line = Line(self._number, content.strip(), self._size, self._end)
        self._buffer.clear()
        self._size = 0
        return line


class LineReader:
    """Open a file, or standard input for ``-``. Raises OSError.

    ``size`` is in bytes, or None if it is not known.
    """

    def __init__(self, name: str) -> None:
        self.name = os.fsencode(name).decode(errors="backslashreplace")
        # Unbuffered, since a thread blocked in a read must hold no lock when the process exits.
        self._file = io.FileIO(0 if name == "-" else name, closefd=name != "-")
        status = os.fstat(self._file.fileno())
        self.is_terminal = self._file.isatty()
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    async def read(self) -> AsyncIterator[Line]:
        """Read the lines. Raises OSError."""
        splitter = LineSplitter()
        async for piece in self._read_pieces():
            for line in splitter.feed(piece):
                yield line
        for line in splitter.close():
            yield line

    async def _read_pieces(self) -> AsyncIterator[bytes]:
        """Read in a daemon thread, so that a blocked read does not keep the process alive."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue(1)

        def read() -> None:
            piece: bytes | OSError = b"not the end"
            while piece and not isinstance(piece, OSError):
                piece = self._read_piece()
                putting = pieces.put(piece)
                try:
                    asyncio.run_coroutine_threadsafe(putting, loop).result()
                except (RuntimeError, CancelledError):  # The loop was closed.
                    putting.close()
                    return

        Thread(target=read, daemon=True).start()
        while piece := await pieces.get():
            if isinstance(piece, OSError):
                raise piece
            yield piece

    def _read_piece(self) -> bytes | OSError:
        try:
            return self._file.read(_CHUNK)
        except OSError as error:
            return error

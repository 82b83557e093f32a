"""The lines of a file or of standard input, however large, in bounded memory."""

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

# The longest spelling of a body that the contract takes: each of its bytes as \u00xx, and room.
MAX_LINE_BYTES: Final = 7 * MAX_BODY_BYTES

_CHUNK: Final = 65_536
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; ``content`` is the beginning only where it is ``overlong``.

    ``number`` counts from 1; ``size`` is all of its bytes, ``end`` where the next line begins.
    """

    number: int
    content: bytes
    size: int
    end: int

    @property
    def overlong(self) -> bool:
        return self.size > MAX_LINE_BYTES


class Splitter:
    """Makes lines of bytes that come in any pieces."""

    def __init__(self) -> None:
        self._number = 0
        self._end = 0
        self._begun = bytearray()
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[Line]:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            self._add(end)
            self._end += 1
            yield self._line()
        self._add(rest)

    def close(self) -> Iterator[Line]:
        """The last line, where no line end follows it."""
        if self._size:
            yield self._line()

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._end += len(part)
        self._begun += part[: MAX_LINE_BYTES - len(self._begun)]

    def _line(self) -> Line:
        self._number += 1
        content = bytes(self._begun)
        if self._number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        line = Line(self._number, content.strip(), self._size, self._end)
        self._begun.clear()
        self._size = 0
        return line


class Source:
    """An open file, or standard input where ``name`` is ``-``. Raises OSError.

    ``size`` is in bytes, where that is known; ``typed`` input comes from a terminal.
    """

    def __init__(self, name: str) -> None:
        # Unbuffered: a thread that is left waiting in it must not hold a lock at the end.
        self._file = io.FileIO(0 if name == "-" else name, closefd=name != "-")
        status = os.fstat(self._file.fileno())
        self.typed = self._file.isatty()
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    async def lines(self) -> AsyncIterator[Line]:
        """Its lines. Raises OSError where reading fails."""
        splitter = Splitter()
        async for piece in self._pieces():
            for line in splitter.feed(piece):
                yield line
        for line in splitter.close():
            yield line

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Read in a thread, for input that keeps one waiting; it is not waited for at the end."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue(1)

        def read() -> None:
            piece: bytes | OSError = b"to be read"
            while piece and not isinstance(piece, OSError):
                piece = self._piece()
                handing_over = pieces.put(piece)
                try:
                    asyncio.run_coroutine_threadsafe(handing_over, loop).result()
                except (RuntimeError, CancelledError):  # The loop is gone: nobody wants it.
                    handing_over.close()
                    return

        Thread(target=read, daemon=True).start()
        while piece := await pieces.get():
            if isinstance(piece, OSError):
                raise piece
            yield piece

    def _piece(self) -> bytes | OSError:
        try:
            return self._file.read(_CHUNK)
        except OSError as error:
            return error

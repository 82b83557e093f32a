"""Standard output as a place that may be slow, or gone."""

import asyncio
import errno
import os
import stat
import sys
from typing import Final

from outplan.cli.outcome import let_go

_HAVE_ANOTHER_END: Final = (stat.S_IFIFO, stat.S_IFSOCK)


class Outlet:
    """Standard output within an event loop.

    ``ready`` waits while nobody takes what was written, so that the loop's other work goes on;
    ``gone`` is done when the reader of a pipe is (``| head -1``). OSError where it was closed.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._loop = asyncio.get_running_loop()
        self._descriptor = sys.stdout.fileno()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        if stat.S_IFMT(os.fstat(self._descriptor).st_mode) in _HAVE_ANOTHER_END:
            # There is never anything to read here, except that the other end was closed.
            self._loop.add_reader(self._descriptor, self._end)

    async def ready(self) -> None:
        """Await that it takes a line."""
        room = asyncio.Event()
        try:
            self._loop.add_writer(self._descriptor, room.set)
        except PermissionError:  # A file always has room.
            return
        try:
            await room.wait()
        finally:
            self._loop.remove_writer(self._descriptor)

    def write(self, line: str) -> None:
        """Write a line in UTF-8, now. OSError: BrokenPipeError where its reader is gone."""
        try:
            sys.stdout.buffer.write(line.encode() + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            let_go()
            raise

    def _end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        let_go()
        self.gone.set_result(None)

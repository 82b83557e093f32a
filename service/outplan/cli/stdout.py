"""Write to standard output whose reader may be slow, or gone."""

import asyncio
import errno
import os
import stat
import sys
from typing import Final

_HAVE_A_READER: Final = (stat.S_IFIFO, stat.S_IFSOCK)


def discard_stdout() -> None:
    """Drop what is still buffered; the interpreter would fail on it when it exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_stdout() -> None:
    """Raise OSError if the process was started with standard output closed."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class AsyncStdout:
    """Write to standard output from an event loop.

    ``wait_writable`` waits while the reader of a pipe is slow, without blocking the loop. The
    future ``closed`` is done when the reader is gone (``| head -1``). Raises OSError if the
    process was started with standard output closed.
    """

    def __init__(self) -> None:
        require_stdout()
        self._loop = asyncio.get_running_loop()
        self._descriptor = sys.stdout.fileno()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        if stat.S_IFMT(os.fstat(self._descriptor).st_mode) in _HAVE_A_READER:
            # Readable here means that the other end was closed.
            self._loop.add_reader(self._descriptor, self._close)

    async def wait_writable(self) -> None:
        """Wait until standard output takes a line."""
        writable = asyncio.Event()
        try:
            self._loop.add_writer(self._descriptor, writable.set)
        except PermissionError:  # A file is always writable.
            return
        try:
            await writable.wait()
        finally:
            self._loop.remove_writer(self._descriptor)

    def write_line(self, line: str) -> None:
        """Write a line in UTF-8. Raises OSError, BrokenPipeError if the reader is gone."""
        try:
            sys.stdout.buffer.write(line.encode() + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            discard_stdout()
            raise

    def _close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        discard_stdout()
        self.closed.set_result(None)

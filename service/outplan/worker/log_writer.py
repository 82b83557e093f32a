"""Write log lines from a thread, so that a pipe which nobody reads does not stop the worker."""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Final

# At 200 to 1,000 bytes a line, some megabytes.
_MAX_LINES: Final = 10_000
# How long the end of the process waits for lines that are still to be written.
_FLUSH_SECONDS: Final = 2.0

_log = logging.getLogger("outplan.log_writer")


class LogWriter(logging.Handler):
    """Hand each record's line to a thread that writes it to a file descriptor.

    While 10,000 lines wait, further ones are dropped: ``on_drop`` is called for each, and a record
    ``log_lines_dropped`` says how many once the file takes lines again.
    """

    def __init__(self, file_descriptor: int, on_drop: Callable[[], None]) -> None:
        super().__init__()
        self._file_descriptor = file_descriptor
        self._on_drop = on_drop
        self._dropped = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MAX_LINES)
        # A daemon, because nothing can end a write that blocks.
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line, or drop it."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except queue.Full:
            self._dropped += 1
            self._on_drop()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Wait for at most two seconds until all lines are written."""
        try:
            self._lines.put(None, timeout=_FLUSH_SECONDS)
        except queue.Full:
            return  # Nobody reads.
        self._thread.join(_FLUSH_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except OSError:  # The reader is gone.
                self._on_drop()
            if self._dropped and self._lines.empty():
                dropped, self._dropped = self._dropped, 0
                _log.warning("log_lines_dropped", extra={"count": dropped})

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._file_descriptor, line) :]
            except BlockingIOError:  # Another process has made the terminal non-blocking.
                select.select([], [self._file_descriptor], [])

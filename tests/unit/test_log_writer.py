"""The thread that writes the log: lines kept, dropped, counted and told."""

import fcntl
import logging
import os
from collections.abc import Iterator

import pytest

from outplan.worker import log_writer
from outplan.worker.log_writer import LogWriter

PIPE_BYTES = 4_096
LINE = "x" * 99
LIMIT = 50


class Pipe:
    """A pipe of 4 KiB that is read only on demand, and the writer into it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.drops = 0
        self.log = LogWriter(self.writer, self._count_drop)
        self.logger = logging.getLogger("outplan.log_writer")
        self.logger.addHandler(self.log)

    def _count_drop(self) -> None:
        self.drops += 1

    def read_lines(self, until: str) -> list[str]:
        """Read whole lines up to one that starts with ``until``."""
        lines: list[str] = []
        with os.fdopen(os.dup(self.reader)) as file:
            for line in file:
                lines.append(line.rstrip("\n"))
                if line.startswith(until):
                    break
        return lines


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(log_writer, "_MAX_LINES", LIMIT)
    monkeypatch.setattr(log_writer, "_FLUSH_SECONDS", 0.2)
    pipe = Pipe()
    yield pipe
    pipe.logger.removeHandler(pipe.log)
    os.close(pipe.reader)
    pipe.log.close()
    os.close(pipe.writer)


def test_a_line_is_written_and_flushed_at_the_end(pipe: Pipe) -> None:
    # Not by a logger: pytest-xdist could not send the lone surrogate that pytest captures.
    pipe.log.handle(logging.makeLogRecord({"msg": "first \u2028 é \udcff"}))
    pipe.log.close()
    assert pipe.read_lines("first") == ["first \u2028 é \\udcff"]


def test_lines_beyond_the_limit_are_dropped_counted_and_told(pipe: Pipe) -> None:
    sent = 500
    for n in range(sent):
        pipe.logger.warning("%03d %s", n, LINE)
    dropped = pipe.drops
    assert sent - LIMIT - PIPE_BYTES // len(LINE) - 2 <= dropped <= sent - LIMIT

    lines = pipe.read_lines("log_lines_dropped")
    assert len(lines) == sent - dropped + 1
    numbers = [int(line[:3]) for line in lines[:-1]]
    assert numbers == sorted(set(numbers))


def test_the_end_of_the_process_does_not_wait_for_a_reader_that_never_comes(pipe: Pipe) -> None:
    for _ in range(200):
        pipe.logger.warning(LINE)
    pipe.log.close()
    assert pipe.log._thread.is_alive()


def test_a_reader_that_is_gone_costs_lines_only(pipe: Pipe) -> None:
    lost, replacement = pipe.reader, os.pipe()
    os.dup2(replacement[0], lost)
    os.close(replacement[0])
    pipe.logger.warning("nobody reads this")
    pipe.log.close()
    os.close(replacement[1])
    assert pipe.drops == 1


def test_a_non_blocking_output_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    lines = LIMIT - 10
    for _ in range(lines):
        pipe.logger.warning(2 * LINE)
    pipe.logger.warning("end")
    assert lines * 2 * len(LINE) > PIPE_BYTES
    assert len(pipe.read_lines("end")) == lines + 1

"""The work of ``outplan import``: lines in, commands out, verdicts counted."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing

from outplan.cli.importing.command import Import
from outplan.cli.importing.entries import Deleted, Wrong, entry
from outplan.cli.importing.lines import Line, Source
from outplan.cli.importing.rejections import Rejections
from outplan.cli.importing.tally import Tally
from outplan.client import CommandRejected, CommandResult, OutplanClient, Request, Result
from outplan.contract.messages import Problem


class Silence(Exception):
    """Raised when as many commands in a row as may be in flight had no answer."""


class Intake:
    """One import. Memory does not grow with the number of lines.

    ``send`` and ``check`` raise OSError where a file cannot be read or written, ``send`` Silence
    and what the client raises, too.
    """

    def __init__(self, source: Source, how: Import, tally: Tally, rejections: Rejections) -> None:
        self._source = source
        self._how = how
        self._tally = tally
        self._rejections = rejections
        self._on_their_way: deque[Line] = deque()
        self._unanswered = 0

    @property
    def on_their_way(self) -> int:
        """How many commands have been sent, or are about to be, and have no verdict yet."""
        return len(self._on_their_way)

    async def check(self) -> None:
        """Judge the lines by themselves, without a broker."""
        async for line, request in self._requests():
            try:
                request.encoded()
                self._tally.counts["valid"] += 1
            except CommandRejected as error:
                self._reject(line, request.message_id, error.problem)
            self._tally.reached = line

    async def send(self) -> None:
        """Send what the lines mean, and await each verdict."""
        how = self._how
        async with OutplanClient(how.amqp_url, prefix=how.prefix, timeout=how.timeout) as client:
            flow = client.send_many(self._sent(), in_flight=how.in_flight)
            # Left early, it has to have ended before the client's connection does.
            async with aclosing(flow) as verdicts:
                async for verdict in verdicts:
                    self._settle(self._on_their_way.popleft(), verdict)

    async def _sent(self) -> AsyncIterator[Request]:
        async for line, request in self._requests():
            self._on_their_way.append(line)
            yield request

    async def _requests(self) -> AsyncIterator[tuple[Line, Request]]:
        async for line in self._source.lines():
            passed_over = line.number < self._how.from_line or not line.content
            found = None if passed_over else self._read(line)
            if found is not None:
                yield line, found
            elif not self._on_their_way:
                self._tally.reached = line

    def _read(self, line: Line) -> Request | None:
        try:
            found = entry(line, self._how.label)
        except Wrong as wrong:
            self._reject(line, None, wrong.problem)
            return None
        if isinstance(found, Deleted):
            self._tally.counts["skipped"] += 1
            return None
        return found

    def _settle(self, line: Line, verdict: CommandResult[Result]) -> None:
        if isinstance(verdict.error, CommandRejected):
            self._reject(line, verdict.request.message_id, verdict.error.problem)
        else:
            self._tally.count(verdict)
        self._tally.reached = line
        self._unanswered = self._unanswered + 1 if verdict.status == "unknown" else 0
        if self._unanswered >= self._how.in_flight:
            raise Silence

    def _reject(self, line: Line, message_id: str | None, problem: Problem) -> None:
        self._rejections.write(line, message_id, problem)
        self._tally.counts["rejected"] += 1

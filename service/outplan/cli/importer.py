"""Import commands from JSON Lines: ``outplan import``."""

import os
import shlex
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, closing, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

import orjson
import typer

from outplan.cli.errors import ExitCode, fail, handle_errors, run_async
from outplan.cli.lines import Line, LineReader
from outplan.cli.options import ImportOptions
from outplan.cli.output import announce_input, print_line, print_table
from outplan.cli.parsing import DeletedOutplan, InvalidLine, parse_line
from outplan.cli.progress import progress_bar
from outplan.cli.stats import ImportStats
from outplan.client import CommandRejected, CommandResult, OutplanClient, Request, Result
from outplan.contract.messages import Problem

_AGAIN: Final = (
    "Run the same import again{}: a command that took effect does not take effect twice."
)
_MAX_QUOTED_CHARACTERS: Final = 1_000


class NotImportable(Exception):
    """Raised when the input is no JSON Lines, or ends before ``--from-line``; the text says how."""


class NoReplies(Exception):
    """Raised when as many commands in a row as may be in flight had no reply."""


def import_file(file: str, options: ImportOptions) -> None:
    """Import a file, or standard input for ``-``, and print a summary.

    Raises typer.Exit unless every line is done.
    """
    source = _open(file)
    rejections = RejectionFile(_find_rejection_path(file, options), append=options.from_line > 1)
    importer = Importer(source, options, rejections)
    stats = importer.stats
    with handle_errors():
        try:
            stopped = _run(importer, source, options)
        except NotImportable as error:
            fail(error, ExitCode.WRONG_USAGE)
    _print_summary(stats, rejections, options, finished=stopped is None)
    if stopped is not None:
        code, reason = stopped
        fail(f"{reason} {_describe_position(importer, code)}", code)
    if stats.counts["unknown"]:
        fail(f"some commands had no reply. {_AGAIN.format('')}", stats.exit_code)
    if stats.exit_code:
        raise typer.Exit(stats.exit_code)


class RejectionFile:
    """Write rejected lines to a JSON Lines file, created with the first one.

    ``append`` keeps the lines of an import that this one continues. That import may have read
    further than it has finished, so a rejection that is there already is not written twice.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        self._append = append
        self._known = frozenset[int]()
        self._file: BinaryIO | None = None

    @property
    def is_used(self) -> bool:
        return self._file is not None

    def write(self, line: Line, message_id: str | None, problem: Problem) -> None:
        """Write a line with its problem. Raises OSError."""
        if self._file is None:
            self._file = self._open()
        entry = {
            "line": line.number,
            "message_id": message_id,
            "problem": problem.model_dump(exclude_none=True),
            "content": _quote(line),
        }
        text = orjson.dumps(entry) + b"\n"
        if hash(text) not in self._known:
            self._file.write(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> BinaryIO:
        if not self._append:
            return self.path.open("wb")
        if self.path.is_file():
            with self.path.open("rb") as there:
                self._known = frozenset(map(hash, there))
        return self.path.open("ab")


class Importer:
    """Import lines in bounded memory.

    ``validate`` and ``send`` raise OSError if a file cannot be read or written, and NotImportable;
    ``send`` also raises NoReplies and ClientError.
    """

    def __init__(
        self, source: LineReader, options: ImportOptions, rejections: RejectionFile
    ) -> None:
        self.stats = ImportStats()
        self.rejections = rejections
        self._source = source
        self._options = options
        self._in_flight: deque[Line] = deque()
        self._unanswered = 0

    @property
    def in_flight(self) -> int:
        """Count the commands that were sent, or are about to be, and have no outcome yet."""
        return len(self._in_flight)

    async def validate(self) -> None:
        """Validate the lines, without a broker."""
        async for line, request in self._parse_requests():
            try:
                request.encode()
                self.stats.counts["valid"] += 1
            except CommandRejected as error:
                self._reject(line, request.message_id, error.problem)
            self.stats.last_done = line

    async def send(self) -> None:
        """Send a command for each line, and count the outcomes."""
        options = self._options
        async with OutplanClient(
            options.amqp_url, prefix=options.prefix, timeout=options.timeout
        ) as client:
            results = client.send_many(self._queue_requests(), in_flight=options.in_flight)
            # Close the generator before its client.
            async with aclosing(results):
                async for result in results:
                    self._settle(self._in_flight.popleft(), result)

    async def _queue_requests(self) -> AsyncIterator[Request]:
        async for line, request in self._parse_requests():
            self._in_flight.append(line)
            yield request

    async def _parse_requests(self) -> AsyncIterator[tuple[Line, Request]]:
        number, is_first = 0, True
        async for line in self._source.read():
            number = line.number
            if is_first and line.content:
                is_first = False
                _require_json_lines(line, self._source.name)
            is_skipped = line.number < self._options.from_line or not line.content
            request = None if is_skipped else self._parse(line)
            if request is not None:
                yield line, request
            elif not self._in_flight:
                self.stats.last_done = line
        if self._options.from_line > max(number, 1):
            lines = "1 line" if number == 1 else f"{number:,} lines"
            raise NotImportable(
                f"--from-line {self._options.from_line} is past the end: {self._source.name} has "
                f"{lines}"
            )

    def _parse(self, line: Line) -> Request | None:
        try:
            parsed = parse_line(line, self._options.label)
        except InvalidLine as error:
            self._reject(line, None, error.problem)
            return None
        if isinstance(parsed, DeletedOutplan):
            self.stats.counts["skipped"] += 1
            return None
        return parsed

    def _settle(self, line: Line, result: CommandResult[Result]) -> None:
        if isinstance(result.error, CommandRejected):
            self._reject(line, result.request.message_id, result.error.problem)
        else:
            self.stats.count(result)
        self.stats.last_done = line
        self._unanswered = self._unanswered + 1 if result.status == "unknown" else 0
        if self._unanswered >= self._options.in_flight:
            raise NoReplies

    def _reject(self, line: Line, message_id: str | None, problem: Problem) -> None:
        self.rejections.write(line, message_id, problem)
        self.stats.counts["rejected"] += 1


def _run(
    importer: Importer, source: LineReader, options: ImportOptions
) -> tuple[ExitCode, str] | None:
    """Import, and return what stopped it, or None."""
    if source.is_terminal:
        announce_input()
    bar = nullcontext() if source.is_terminal else progress_bar(importer.stats, source.size)
    try:
        with bar, closing(importer.rejections):
            run_async(importer.validate() if options.dry_run else importer.send())
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED, "interrupted."
    except NoReplies:
        return ExitCode.UNKNOWN, "stopped, since nothing answers; check that a worker runs."
    except OSError as error:
        return ExitCode.FAILED, f"stopped: a file cannot be read or written: {error.strerror}."
    return None


def _require_json_lines(first: Line, name: str) -> None:
    """Refuse an array and an object over many lines, of which each line would be rejected."""
    kinds = {b"[": ("a JSON array", "'.[]'"), b"{": ("JSON over several lines", ".")}
    start = first.content[:1] if first.content[:1] == b"[" else first.content
    if start in kinds:
        kind, expression = kinds[start]
        raise NotImportable(
            f"{name} is {kind}, and not JSON Lines, one object a line; run\n"
            f"  jq -c {expression} {'FILE' if name == '-' else shlex.quote(name)} | "
            "outplan import -"
        )


def _open(file: str) -> LineReader:
    try:
        return LineReader(file)
    except OSError as error:
        fail(f"{file}: {error.strerror}", ExitCode.WRONG_USAGE)


def _find_rejection_path(file: str, options: ImportOptions) -> Path:
    """Check the path before the import, so that it does not fail after many lines."""
    path = Path(options.rejected or f"{'import' if file == '-' else file}.rejected.jsonl")
    writable = path if path.exists() else path.parent
    if path.is_dir() or not os.access(writable, os.W_OK):
        fail(f"{path}: cannot be written; see --rejected", ExitCode.WRONG_USAGE)
    if file != "-" and path.exists() and path.samefile(file):
        fail(f"{path}: is the file to be imported; see --rejected", ExitCode.WRONG_USAGE)
    return path


def _print_summary(
    stats: ImportStats, rejections: RejectionFile, options: ImportOptions, *, finished: bool
) -> None:
    # Also where the bytes of the path are not UTF-8.
    path = os.fsencode(rejections.path).decode(errors="backslashreplace")
    if options.as_json:
        summary = stats.to_json()
        summary["rejected_file"] = path if rejections.is_used else None
        typer.echo(orjson.dumps({**summary, "finished": finished}))
        return
    print_line(stats.headline())
    print_table(stats.table())
    if rejections.is_used:
        print_line(f"The rejected lines are in {path}")


def _describe_position(importer: Importer, code: ExitCode) -> str:
    stats = importer.stats
    last = stats.last_done.number
    if not last:
        return f"No line is done yet.\n{_AGAIN.format('')}"
    more = f", {importer.in_flight} more were in flight" if importer.in_flight else ""
    # After an unknown outcome, or a rejection that could not be written, earlier lines are open.
    needs_all = stats.counts["unknown"] or code != ExitCode.INTERRUPTED
    hint = "" if needs_all else f", or continue with --from-line {last + 1}"
    return f"All lines up to {last} are done{more}.\n{_AGAIN.format(hint)}"


def _quote(line: Line) -> orjson.Fragment | str:
    """Return JSON as it is, and anything else, or an overlong line, as text."""
    text = line.content.decode(errors="replace")
    if line.is_overlong:
        return text[:_MAX_QUOTED_CHARACTERS] + "…"
    try:
        orjson.loads(line.content)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(line.content)

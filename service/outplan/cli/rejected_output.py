"""Print rejected commands: as a list, in full, and what a redrive does to them."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from outplan.cli.output import (
    escape,
    escape_json,
    make_console,
    make_table,
    print_line,
    print_note,
    print_table,
)
from outplan.cli.stdout import require_stdout
from outplan.contract.messages import Problem
from outplan.contract.times import format_time
from outplan.operations.redrive import RedriveResult
from outplan.operations.rejected_queue import RejectedMessage

Json = dict[str, Any]

_COLOURS: Final = {
    "accepted": "green",
    "valid": "green",
    "unchanged": "green",
    "duplicate": "green",
    "rejected": "red",
    "invalid": "red",
}
_PHRASES: Final = {
    "accepted": "accepted",
    "unchanged": "unchanged",
    "duplicate": "duplicate (took effect before)",
    "rejected": "rejected again",
    "invalid": "still invalid, not sent",
    "valid": "valid now",
}
# Headers that the lines above them show already, and the broker's counters: RabbitMQ 4.3 counts
# each look at a message in x-acquired-count.
_HIDDEN_HEADERS: Final = frozenset(
    {"x-problem", "x-problem-code", "x-rejected-at", "x-delivery-count", "x-acquired-count"}
)
_MIN_DETAIL: Final = 24
_LABEL_WIDTH: Final = 12
_AGES: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_COLUMNS: Final[dict[str, Callable[[RejectedMessage], str]]] = {
    "n": lambda message: str(message.number),
    "rejected (UTC)": lambda message: _format_time(message)[:19],
    "age": lambda message: _format_age(message.summary.rejected_at),
    "code": lambda message: message.summary.code or "-",
    "command": lambda message: message.summary.command or "-",
    "message_id": lambda message: message.summary.message_id or "-",
    "outplan": lambda message: message.summary.outplan_id or "-",
    "customer": lambda message: message.summary.customer_id or "-",
    "detail": lambda message: message.summary.detail,
}
# A narrow terminal shows the first of these that fit.
_PRIORITY: Final = (
    "n", "code", "age", "command", "message_id", "detail", "outplan", "customer", "rejected (UTC)",
)  # fmt: skip


def print_list(messages: Sequence[RejectedMessage], as_json: bool) -> None:
    """Print a line for each message: JSON, or a table that fits the terminal."""
    if as_json:
        _print_json(encode_message(message, asdict(message.summary)) for message in messages)
    elif messages:
        _print_table(messages)


def print_counts(messages: Sequence[RejectedMessage], total: int, limit: int | None) -> None:
    """Print to standard error how many messages have which code."""
    by_code = Counter(message.summary.code or "without a code" for message in messages)
    each = ", ".join(f"{n:,} {escape(code)}" for code, n in by_code.most_common())
    if limit is not None and limit < len(messages):
        print_note(f"showing the {limit:,} oldest" if limit else "showing none")
    if not total:
        print_note("no rejected messages")
    elif not messages:
        print_note(f"none of {count_messages(total)} matches")
    else:
        of = f" of {total:,}" if total != len(messages) else ""
        print_note(f"{len(messages):,}{of}: {each}")


def print_message(
    message: RejectedMessage, record: Json, result: RedriveResult, as_json: bool
) -> None:
    """Print a message in full, and whether its command is valid today."""
    problem = result.problem.model_dump(exclude_none=True) if result.problem else None
    if as_json:
        fields = {**record, "valid_now": not problem, "problem_now": problem}
        _print_json([encode_message(message, fields)])
        return
    print_line(f"{message.number}  {escape(message.summary.code or 'without a code')}", "bold")
    table = make_table()
    table.add_column(min_width=_LABEL_WIDTH)
    for label, value in _describe(message, record, result.problem):
        table.add_row(label, value)
    print_table(table)
    print_line("")
    for text in _format_body(record):
        print_line(text)
    print_line("")


def encode_message(message: RejectedMessage, fields: Json) -> bytes:
    """Encode a message as a line of JSON."""
    at = message.summary.rejected_at
    line = {"number": message.number, **fields, "rejected_at": format_time(at) if at else None}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def count_messages(number: int) -> str:
    """Return a number of messages in words."""
    return "1 message" if number == 1 else f"{number:,} messages"


class RedriveReport:
    """Print the result of each message, and at the end how many had which result."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._selected = 0
        self._total = 0
        self._counts: Counter[str] = Counter()

    @property
    def has_failures(self) -> bool:
        return bool(self._counts["rejected"] or self._counts["invalid"])

    def expect(self, selected: int, total: int) -> None:
        """Set how many messages are selected of how many."""
        self._selected, self._total = selected, total

    def add(self, result: RedriveResult) -> None:
        """Print one result."""
        self._counts[result.status] += 1
        summary = result.message.summary
        if self._as_json:
            fields = {
                "status": result.status,
                "code": summary.code,
                "command": summary.command,
                "message_id": summary.message_id,
                "version": result.version,
                "problem": result.problem.model_dump(exclude_none=True) if result.problem else None,
            }
            _print_json([encode_message(result.message, fields)])
            return
        why = f"  {escape(_explain(result.problem))}" if result.problem else ""
        version = f"  version {result.version}" if result.version else ""
        id_ = escape(summary.message_id or "-")
        line = f"{result.status:<9}  {escape(summary.command)}  {id_}{version}{why}"
        print_line(line, _COLOURS[result.status])

    def close(self) -> None:
        """Print the counts."""
        if not self._total:
            print_note("no rejected messages")
            return
        done = self._counts.total()
        each = ", ".join(f"{n:,} {_PHRASES[status]}" for status, n in self._counts.items())
        rest = f"; {self._selected - done:,} not tried" if done < self._selected else ""
        print_note(f"{done:,} of {count_messages(self._total)}{': ' if each else ''}{each}{rest}")


def _print_json(lines: Iterable[bytes]) -> None:
    require_stdout()
    is_terminal = sys.stdout.isatty()
    for line in lines:
        shown = escape_json(line.decode()[:-1]).encode() + b"\n" if is_terminal else line
        sys.stdout.buffer.write(shown)
    sys.stdout.buffer.flush()


def _print_table(messages: Sequence[RejectedMessage]) -> None:
    # rich.table takes five times as long for a row, and a queue can hold 100,000.
    console = make_console()
    rows = [{name: escape(cell(m)) for name, cell in _COLUMNS.items()} for m in messages]
    widths = {name: max(cell_len(row[name]) for row in ({name: name}, *rows)) for name in _COLUMNS}
    if console.is_terminal:
        widths = _fit_columns(widths, console.width)
    console.print(
        Text(_format_row({name: name for name in widths}, widths), "bold"), soft_wrap=True
    )
    for row in rows:
        console.print(Text(_format_row(row, widths)), soft_wrap=True)


def _fit_columns(widths: dict[str, int], room: int) -> dict[str, int]:
    """Return the columns that fit; the detail takes the room that is left."""
    kept: set[str] = set()
    for name in _PRIORITY:
        least = min(widths[name], _MIN_DETAIL) if name == "detail" else widths[name]
        if least > room:
            break
        kept.add(name)
        room -= least + 2
    fitted = {name: width for name, width in widths.items() if name in kept}
    if "detail" in fitted:
        least = min(widths["detail"], _MIN_DETAIL)
        fitted["detail"] = min(widths["detail"], least + max(0, room + 2))
    return fitted


def _format_row(row: dict[str, str], widths: dict[str, int]) -> str:
    return "  ".join(_fit_cell(row[name], width) for name, width in widths.items()).rstrip()


def _fit_cell(text: str, width: int) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def _format_time(message: RejectedMessage) -> str:
    at = message.summary.rejected_at
    return format_time(at.astimezone(UTC)) if at else "-"


def _format_age(at: datetime | None) -> str:
    if at is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    size, unit = next((s, u) for s, u in _AGES if seconds >= s or s == 1)
    return f"{seconds // size}{unit}"


def _explain(problem: Problem) -> str:
    if problem.errors:
        return "; ".join(f"{e.pointer or '/'}: {e.detail}" for e in problem.errors)
    return f"{problem.code}: {problem.detail}"


def _describe(
    message: RejectedMessage, record: Json, problem: Problem | None
) -> Iterator[tuple[str, str]]:
    summary = message.summary
    by = f" by the {summary.rejected_by}" if summary.rejected_by else ""
    age = f", {_format_age(summary.rejected_at)} ago" if summary.rejected_at else ""
    yield "rejected", f"{_format_time(message)}{by}{age}"
    yield "command", escape(summary.command or "-")
    yield "message_id", escape(summary.message_id or "-")
    yield "outplan", escape(summary.outplan_id or "-")
    yield "customer", escape(summary.customer_id or "-")
    yield from _describe_problem(record["problem"], summary.detail)
    yield "now", f"invalid: {escape(_explain(problem))}" if problem else "valid"
    for kind, label in (("properties", "property"), ("headers", "header")):
        for name, value in record[kind].items():
            if name not in _HIDDEN_HEADERS:
                yield label, _format_pair(name, value)


def _describe_problem(problem: Json | None, detail: str) -> Iterator[tuple[str, str]]:
    errors = (problem or {}).get("errors")
    yield "problem", escape(str((problem or {}).get("detail") or detail or "-"))
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            yield "", escape(f"{error.get('pointer') or '/'}: {error.get('detail')}")
    if problem and "current_version" in problem:
        yield "", f"current version {problem['current_version']}"


def _format_pair(name: str, value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return escape(f"{name} = {text}")


def _format_body(record: Json) -> Iterator[str]:
    """Indent JSON; return any other body as it is, escaped."""
    if "body_base64" in record:
        yield f"The body, {record['body_bytes']:,} bytes, is not UTF-8; in base64:"
        yield record["body_base64"]
        return
    try:
        text = orjson.dumps(orjson.loads(record["body"]), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        yield f"The body, {record['body_bytes']:,} bytes, is not JSON:"
        text = record["body"]
    for line in text.splitlines():
        yield escape(line)

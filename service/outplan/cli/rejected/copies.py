"""Rejected commands on the screen: in a line each, in full, and what became of them."""

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from outplan.cli.legible import legible, legible_json
from outplan.cli.terminal import a_console, say
from outplan.contract.messages import Problem
from outplan.domain.decider import text_time
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
_SAID_ABOVE: Final = frozenset({"x-problem", "x-problem-code", "x-rejected-at", "x-delivery-count"})
_LEAST_DETAIL: Final = 24
_MARGIN: Final = 12
_AGES: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_COLUMNS: Final[dict[str, Callable[[RejectedMessage], str]]] = {
    "n": lambda held: str(held.number),
    "rejected (UTC)": lambda held: _time(held)[:19],
    "age": lambda held: _age(held.summary.rejected_at),
    "code": lambda held: held.summary.code or "-",
    "command": lambda held: held.summary.command or "-",
    "message_id": lambda held: held.summary.message_id or "-",
    "outplan": lambda held: held.summary.outplan_id or "-",
    "customer": lambda held: held.summary.customer_id or "-",
    "detail": lambda held: held.summary.detail,
}
# Where a terminal is too narrow for all, these stay in turn.
_BY_WEIGHT: Final = (
    "n", "code", "age", "command", "message_id", "detail", "outplan", "customer", "rejected (UTC)",
)  # fmt: skip


def rows(found: Sequence[RejectedMessage], as_json: bool) -> None:
    """Print a line each: a table as wide as the terminal, or as it needs, or JSON."""
    if as_json:
        emit(as_line(held, asdict(held.summary)) for held in found)
    elif found:
        _table(found)


def counts(found: Sequence[RejectedMessage], among: int, limit: int | None) -> None:
    """Say on standard error how many there are of each code."""
    by_code = Counter(held.summary.code or "without a code" for held in found)
    each = ", ".join(f"{n:,} {legible(code)}" for code, n in by_code.most_common())
    if limit is not None and limit < len(found):
        note(f"the {limit:,} oldest are shown" if limit else "none is shown")
    if not among:
        note("no rejected command is there")
    elif not found:
        note(f"none of {counted(among)} fits")
    else:
        of = f" of {among:,}" if among != len(found) else ""
        note(f"{len(found):,}{of}: {each}")


def whole(held: RejectedMessage, record: Json, now: RedriveResult, as_json: bool) -> None:
    """Print all that a copy says, and whether its command would pass now."""
    verdict = now.problem.model_dump(exclude_none=True) if now.problem else None
    if as_json:
        emit([as_line(held, {**record, "valid_now": not verdict, "problem_now": verdict})])
        return
    say(f"{held.number}  {legible(held.summary.code or 'without a code')}", "bold")
    for label, value in _described(held, record, now.problem):
        say(f"{label:<{_MARGIN}}  {value}")
    say("")
    for text in _body(record):
        say(text)
    say("")


def as_line(held: RejectedMessage, record: Json) -> bytes:
    """One copy as a line of JSON."""
    at = held.summary.rejected_at
    line = {"number": held.number, **record, "rejected_at": text_time(at) if at else None}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def emit(lines: Iterable[bytes]) -> None:
    """Print lines of JSON; on a terminal with no letter that could steer it."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    shown = sys.stdout.isatty()
    for line in lines:
        sys.stdout.buffer.write(
            legible_json(line.decode()[:-1]).encode() + b"\n" if shown else line
        )
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Print to standard error what is no result."""
    a_console(stderr=True).print(Text(text), soft_wrap=True)


def counted(number: int) -> str:
    """Say how many copies."""
    return "1 copy" if number == 1 else f"{number:,} copies"


class Tally:
    """Prints what becomes of each, and in the end how many there were of what."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._expected = 0
        self._among = 0
        self._counts: Counter[str] = Counter()

    @property
    def failed(self) -> bool:
        return bool(self._counts["rejected"] or self._counts["invalid"])

    def expect(self, chosen: int, among: int) -> None:
        self._expected, self._among = chosen, among

    def add(self, each: RedriveResult) -> None:
        """Print one."""
        self._counts[each.status] += 1
        summary = each.message.summary
        if self._as_json:
            said = {
                "status": each.status,
                "code": summary.code,
                "command": summary.command,
                "message_id": summary.message_id,
                "version": each.version,
                "problem": each.problem.model_dump(exclude_none=True) if each.problem else None,
            }
            emit([as_line(each.message, said)])
            return
        why = f"  {legible(_why(each.problem))}" if each.problem else ""
        version = f"  version {each.version}" if each.version else ""
        id_ = legible(summary.message_id or "-")
        say(
            f"{each.status:<9}  {legible(summary.command)}  {id_}{version}{why}",
            _COLOURS[each.status],
        )

    def close(self) -> None:
        """Print the counts."""
        if not self._among:
            note("no rejected command is there")
            return
        done = self._counts.total()
        each = ", ".join(f"{n:,} {_WORDS[status]}" for status, n in self._counts.items())
        rest = f"; {self._expected - done:,} not tried" if done < self._expected else ""
        note(f"{done:,} of {counted(self._among)}{': ' if each else ''}{each}{rest}")


_WORDS: Final = {
    "accepted": "accepted",
    "unchanged": "unchanged",
    "duplicate": "duplicate (accepted before)",
    "rejected": "rejected once more",
    "invalid": "still invalid, not sent",
    "valid": "valid now",
}


def _time(held: RejectedMessage) -> str:
    at = held.summary.rejected_at
    return text_time(at.astimezone(UTC)) if at else "-"


def _age(at: datetime | None) -> str:
    if at is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    size, unit = next((s, u) for s, u in _AGES if seconds >= s or s == 1)
    return f"{seconds // size}{unit}"


def _table(found: Sequence[RejectedMessage]) -> None:
    console = a_console()
    cells = [{name: legible(cell(held)) for name, cell in _COLUMNS.items()} for held in found]
    widths = {name: max(cell_len(row[name]) for row in ({name: name}, *cells)) for name in _COLUMNS}
    if console.is_terminal:
        widths = _fitting(widths, console.width)
    console.print(Text(_row({name: name for name in widths}, widths), "bold"), soft_wrap=True)
    for row in cells:
        console.print(Text(_row(row, widths)), soft_wrap=True)


def _fitting(widths: dict[str, int], room: int) -> dict[str, int]:
    """The columns that there is room for; the detail takes what is left."""
    kept: set[str] = set()
    for name in _BY_WEIGHT:
        least = min(widths[name], _LEAST_DETAIL) if name == "detail" else widths[name]
        if least > room:
            break
        kept.add(name)
        room -= least + 2
    found = {name: width for name, width in widths.items() if name in kept}
    if "detail" in found:
        least = min(widths["detail"], _LEAST_DETAIL)
        found["detail"] = min(widths["detail"], least + max(0, room + 2))
    return found


def _row(row: dict[str, str], widths: dict[str, int]) -> str:
    return "  ".join(_cell(row[name], width) for name, width in widths.items()).rstrip()


def _cell(text: str, width: int) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def _why(problem: Problem) -> str:
    if problem.errors:
        return "; ".join(f"{e.pointer or '/'}: {e.detail}" for e in problem.errors)
    return f"{problem.code}: {problem.detail}"


def _described(
    held: RejectedMessage, record: Json, now: Problem | None
) -> Iterator[tuple[str, str]]:
    summary = held.summary
    by = f" by the {summary.rejected_by}" if summary.rejected_by else ""
    yield (
        "rejected",
        f"{_time(held)}{by}, {_age(summary.rejected_at)} ago" if summary.rejected_at else f"-{by}",
    )
    yield "command", legible(summary.command or "-")
    yield "message_id", legible(summary.message_id or "-")
    yield "outplan", legible(summary.outplan_id or "-")
    yield "customer", legible(summary.customer_id or "-")
    yield from _problem(record["problem"], summary.detail)
    yield "now", f"invalid: {legible(_why(now))}" if now else "it would pass the schema"
    for kind, label in (("properties", "property"), ("headers", "header")):
        for name, value in record[kind].items():
            if name not in _SAID_ABOVE:
                yield label, _pair(name, value)


def _problem(problem: Json | None, detail: str) -> Iterator[tuple[str, str]]:
    errors = (problem or {}).get("errors")
    yield "problem", legible(str((problem or {}).get("detail") or detail or "-"))
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            yield "", legible(f"{error.get('pointer') or '/'}: {error.get('detail')}")
    if problem and "current_version" in problem:
        yield "", f"current version {problem['current_version']}"


def _pair(name: str, value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return legible(f"{name} = {text}")


def _body(record: Json) -> Iterator[str]:
    """JSON laid out; anything else as it is, escaped."""
    if "body_base64" in record:
        yield f"The body, {record['body_bytes']:,} bytes, is no text; in base64:"
        yield record["body_base64"]
        return
    try:
        laid_out = orjson.dumps(orjson.loads(record["body"]), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        yield f"The body, {record['body_bytes']:,} bytes, is no JSON:"
        laid_out = record["body"]
    for line in laid_out.splitlines():
        yield legible(line)

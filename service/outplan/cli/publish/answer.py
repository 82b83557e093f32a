"""What ``outplan publish`` prints of an outcome: lines for a person, or one JSON object."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
import typer

from outplan.cli.legible import legible
from outplan.cli.terminal import complain, say
from outplan.client import Request, Result
from outplan.contract.messages import Outplan, Problem

_COLOURS: Final = {"accepted": "green", "unchanged": "yellow", "sent": "green"}
_MARGIN: Final = 15


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a request: at most one of a result, a problem, and what is in the way."""

    request: Request
    result: Result | None = None
    problem: Problem | None = None
    trouble: str = ""

    @property
    def status(self) -> Literal["accepted", "unchanged", "rejected", "unknown", "sent"]:
        if self.result is not None:
            return self.result.status
        if self.problem is not None:
            return "rejected"
        return "unknown" if self.trouble else "sent"


def show(answer: Answer, as_json: bool) -> None:
    """Print an outcome to standard output, what is no success to standard error.

    Of an unknown one only JSON is printed: it is for the caller to say what to do.
    """
    if as_json:
        typer.echo(orjson.dumps(_object(answer)))
    elif answer.problem is not None:
        complain(*_complaints(answer.problem, answer.request))
    elif answer.status != "unknown":
        say(_headline(answer), _COLOURS[answer.status])
        for label, text in _lines(answer):
            say(f"{label:<{_MARGIN}}{legible(text)}".rstrip())


def _object(answer: Answer) -> dict[str, Any]:
    """The reply's shape, and in the same spirit what is known without one."""
    said: dict[str, Any] = {"command_id": answer.request.message_id, "status": answer.status}
    if answer.result is not None:
        said["duplicate"] = answer.result.duplicate
        said["version"] = answer.result.version
        said["outplan"] = answer.result.outplan.model_dump()
    elif answer.problem is not None:
        said["duplicate"] = False
        said["problem"] = answer.problem.model_dump(exclude_none=True)
    elif answer.trouble:
        said["trouble"] = answer.trouble
    return said


def _complaints(problem: Problem, request: Request) -> Iterator[str]:
    yield f"rejected: {problem.title}"
    if problem.errors is None:
        yield f"  {legible(problem.detail)}"
    for error in problem.errors or ():
        yield f"  {legible(error.pointer) or '(the whole)'}: {legible(error.detail)}"
    yield f"  command {request.name} {legible(request.message_id)}"


def _headline(answer: Answer) -> str:
    if answer.result is None:
        return "sent, and confirmed by the broker"
    again = ", a duplicate: it had taken effect before" if answer.result.duplicate else ""
    return f"{answer.result.status}, version {answer.result.version}{again}"


def _lines(answer: Answer) -> Iterator[tuple[str, str]]:
    yield "command", f"{answer.request.name} {answer.request.message_id}"
    if answer.result is not None:
        yield from _fields(answer.result.outplan)
    elif answer.request.outplan_id is not None:
        yield "id", answer.request.outplan_id


def _fields(outplan: Outplan) -> Iterator[tuple[str, str]]:
    source = outplan.source
    texts = (f"{source.type}:{source.target}", source.target_name, source.name, source.detail)
    yield "id", outplan.id
    yield "customer_id", outplan.customer_id
    yield "name", outplan.name
    if outplan.detail:
        yield "detail", outplan.detail
    yield "source", "  ".join(filter(None, texts))
    yield "dial_timeout", f"{outplan.dial_timeout} ms"
    yield "try_interval", f"{outplan.try_interval} ms"
    yield "max_try_count", "  ".join(str(getattr(outplan, f"max_try_count_{n}")) for n in range(5))
    yield "tm_create", outplan.tm_create
    yield "tm_update", outplan.tm_update
    if outplan.deleted:
        yield "tm_delete", outplan.tm_delete

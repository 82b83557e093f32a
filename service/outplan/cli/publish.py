"""Publish one command and print its outcome: ``outplan publish``."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
import typer

from outplan.cli.errors import ExitCode, fail, handle_errors, run_async
from outplan.cli.options import PublishOptions
from outplan.cli.output import (
    announce_input,
    escape,
    make_table,
    print_error,
    print_line,
    print_table,
    spinner,
)
from outplan.cli.stdout import discard_stdout
from outplan.client import CommandRejected, OutcomeUnknown, OutplanClient, Request, Result
from outplan.client.ids import new_id
from outplan.contract.messages import CommandName, Outplan, Problem

_COLOURS: Final = {"accepted": "green", "unchanged": "yellow", "sent": "green"}
_LABEL_WIDTH: Final = 13
_MAXIMA: Final = tuple(f"max_try_count_{index}" for index in range(5))
_DIALS_NOBODY: Final = (
    "warning: all five max_try_count are 0, so dialers dial nobody by this outplan; "
    "set --max-try-count-0"
)


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """Hold a request with at most one of its result, its problem, and the obstacle to a reply.

    ``is_sent`` is False if the command was found invalid before.
    """

    request: Request
    result: Result | None = None
    problem: Problem | None = None
    obstacle: str = ""
    is_sent: bool = True

    @property
    def status(self) -> Literal["accepted", "unchanged", "rejected", "unknown", "sent", "not_sent"]:
        if self.result is not None:
            return self.result.status
        if self.problem is not None:
            return "rejected" if self.is_sent else "not_sent"
        return "unknown" if self.obstacle else "sent"

    @property
    def dials_nobody(self) -> bool:
        """True if all maxima of the outplan, after the command, are 0."""
        if self.result is not None:
            outplan = self.result.outplan
            return not outplan.deleted and not any(getattr(outplan, name) for name in _MAXIMA)
        is_create = self.request.name == "outplan_create" and self.problem is None
        return is_create and not any(self.request.body.get(name) for name in _MAXIMA)

    def to_json(self) -> dict[str, Any]:
        """Return an object in the shape of a reply, also if there is no reply."""
        members: dict[str, Any] = {"command_id": self.request.message_id, "status": self.status}
        if self.result is not None:
            members["duplicate"] = self.result.duplicate
            members["version"] = self.result.version
            members["outplan"] = self.result.outplan.model_dump()
        elif self.problem is not None:
            members["duplicate"] = False
            members["problem"] = self.problem.model_dump(exclude_none=True)
        elif self.obstacle:
            members["trouble"] = self.obstacle
        has_reply = self.status in ("accepted", "unchanged", "rejected")
        if not has_reply and self.request.outplan_id is not None:
            members["outplan_id"] = self.request.outplan_id
        return members


def publish_command(name: CommandName, fields: dict[str, Any], options: PublishOptions) -> None:
    """Publish a command with the fields that are not None, and print its outcome.

    Raises typer.Exit unless the worker accepts the command.
    """
    given = {field: value for field, value in fields.items() if value is not None}
    with handle_errors():
        request = _build_request(name, given, options)
        try:
            with spinner("Waiting for the broker's confirm and the reply …"):
                outcome = run_async(_send(request, options))
        except KeyboardInterrupt:
            fail(_explain_unknown(request, "interrupted"), ExitCode.INTERRUPTED)
    try:
        _print(outcome, options.as_json)
    except OSError as error:
        discard_stdout()
        fail(_explain_unprinted(outcome, error), ExitCode.UNKNOWN)
    if outcome.dials_nobody:
        print_error(_DIALS_NOBODY)
    if outcome.status == "unknown":
        fail(_explain_unknown(request, outcome.obstacle), ExitCode.UNKNOWN)
    if outcome.problem is not None:
        raise typer.Exit(ExitCode.REJECTED if outcome.is_sent else ExitCode.NOT_SENT)


def _build_request(name: CommandName, given: dict[str, Any], options: PublishOptions) -> Request:
    body = {} if options.json_file is None else _load_fields(options.json_file)
    if "id" in given and body.get("id", given["id"]) != given["id"]:
        error = (
            f"{options.json_file} names outplan {body['id']} and the command line names "
            f"{given['id']}: remove one"
        )
        fail(error, ExitCode.WRONG_USAGE)
    body |= given
    if "id" not in body and name != "outplan_create":
        fail(
            "the outplan's ID is missing: give it after the command, or as id in --json-file",
            ExitCode.WRONG_USAGE,
        )
    return Request(name, body, options.message_id or new_id())


def _load_fields(file: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(_read_file(file).removeprefix(BOM_UTF8))
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", ExitCode.WRONG_USAGE)
    except orjson.JSONDecodeError as error:
        fail(f"cannot read {file}: this is not JSON in UTF-8: {error}", ExitCode.WRONG_USAGE)
    if not isinstance(fields, dict):
        fail(f"cannot read {file}: this is JSON, but not an object", ExitCode.WRONG_USAGE)
    return fields


def _read_file(file: str) -> bytes:
    is_stdin = file == "-"
    if is_stdin and os.isatty(0):
        announce_input()
    with open(0 if is_stdin else file, "rb", closefd=not is_stdin) as opened:
        return opened.read()


async def _send(request: Request, options: PublishOptions) -> PublishOutcome:
    client = OutplanClient(
        options.amqp_url,
        prefix=options.prefix,
        timeout=options.timeout,
        validate=options.validate,
    )
    try:
        # Validate before connecting: an invalid body needs no broker.
        request.encode(validate=options.validate)
    except CommandRejected as error:
        return PublishOutcome(request, problem=error.problem, is_sent=False)
    try:
        async with client:
            if options.wait:
                return PublishOutcome(request, result=await client.ask(request))
            await client.send(request)
    except CommandRejected as error:
        return PublishOutcome(request, problem=error.problem)
    except OutcomeUnknown as error:
        return PublishOutcome(request, obstacle=error.trouble)
    return PublishOutcome(request)


def _print(outcome: PublishOutcome, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(outcome.to_json()))
    elif outcome.problem is not None:
        print_error(*_describe_problem(outcome.problem, outcome))
    elif outcome.status != "unknown":
        print_line(_headline(outcome), _COLOURS[outcome.status])
        table = make_table()
        table.add_column(min_width=_LABEL_WIDTH)
        for label, text in _describe(outcome):
            table.add_row(label, escape(text))
        print_table(table)


def _describe_problem(problem: Problem, outcome: PublishOutcome) -> Iterator[str]:
    yield f"{'rejected' if outcome.is_sent else 'not sent'}: {problem.title}"
    if problem.errors is None:
        yield f"  {escape(problem.detail)}"
    for error in problem.errors or ():
        yield f"  {escape(error.pointer) or '(the whole body)'}: {escape(error.detail)}"
    yield f"  command {outcome.request.name} {escape(outcome.request.message_id)}"


def _headline(outcome: PublishOutcome) -> str:
    if outcome.result is None:
        return "sent, and confirmed by the broker"
    again = ", a duplicate: it took effect before" if outcome.result.duplicate else ""
    return f"{outcome.result.status}, version {outcome.result.version}{again}"


def _describe(outcome: PublishOutcome) -> Iterator[tuple[str, str]]:
    yield "command", f"{outcome.request.name} {outcome.request.message_id}"
    if outcome.result is not None:
        yield from _describe_outplan(outcome.result.outplan)
    elif outcome.request.outplan_id is not None:
        yield "id", outcome.request.outplan_id


def _describe_outplan(outplan: Outplan) -> Iterator[tuple[str, str]]:
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


def _explain_unprinted(outcome: PublishOutcome, error: OSError) -> str:
    return (
        f"{outcome.status}, but standard output cannot be written: {error.strerror}\n"
        "To get the whole outcome, send the command again with\n"
        f"  --message-id {escape(outcome.request.message_id)}"
    )


def _explain_unknown(request: Request, obstacle: str) -> str:
    return (
        f"no reply to the command {escape(request.message_id)}: {escape(obstacle)}\n"
        "It may have taken effect, or may yet. To get the outcome, send it again with\n"
        f"  --message-id {escape(request.message_id)}\n"
        "It does not take effect twice."
    )

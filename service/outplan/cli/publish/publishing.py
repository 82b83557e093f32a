"""The work of ``outplan publish``: from options and a file to a request, and its outcome."""

import os
from codecs import BOM_UTF8
from contextlib import nullcontext
from typing import Any

import orjson
import typer

from outplan.cli.legible import legible
from outplan.cli.outcome import Exit, carried_out, failure, let_go, told
from outplan.cli.publish.answer import Answer, show
from outplan.cli.publish.command import Sending
from outplan.cli.terminal import invitation, patience
from outplan.client import CommandRejected, OutcomeUnknown, OutplanClient, Request
from outplan.client.ids import new_id
from outplan.contract.messages import CommandName


def publish(name: CommandName, options: dict[str, Any], sending: Sending) -> None:
    """Send the command and print its outcome. Raises typer.Exit for any but a good one."""
    with told():
        request = _request(name, options, sending)
        try:
            with patience("Waiting for the broker's confirmation and the outcome …"):
                answer = carried_out(_answer(request, sending))
        except KeyboardInterrupt:
            raise failure(_left_open(request, "interrupted"), Exit.INTERRUPTED) from None
    try:
        show(answer, sending.as_json)
    except OSError as error:
        let_go()
        raise failure(_untold(request, answer, error), Exit.UNKNOWN) from None
    if answer.status == "unknown":
        raise failure(_left_open(request, answer.trouble), Exit.UNKNOWN)
    if answer.status == "rejected":
        raise typer.Exit(Exit.REJECTED)


def _request(name: CommandName, options: dict[str, Any], sending: Sending) -> Request:
    body = {} if sending.json_file is None else _fields(sending.json_file)
    if "id" in options and body.get("id", options["id"]) != options["id"]:
        told = f"the file is about outplan {body['id']}, the command line about {options['id']}"
        raise failure(told, Exit.WRONG_USAGE)
    body |= options
    if "id" not in body and name != "outplan_create":
        raise failure("say which outplan: its ID is missing", Exit.WRONG_USAGE)
    try:
        return Request(name, body, sending.message_id or new_id())
    except ValueError as error:
        raise failure(error, Exit.WRONG_USAGE) from None


def _fields(file: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = _standard_input() if file == "-" else _content(file)
        fields = orjson.loads(content.removeprefix(BOM_UTF8))
    except OSError as error:
        raise failure(f"{file}: {error.strerror}", Exit.WRONG_USAGE) from None
    except orjson.JSONDecodeError as error:
        raise failure(f"{file}: this is not JSON in UTF-8: {error}", Exit.WRONG_USAGE) from None
    if not isinstance(fields, dict):
        raise failure(f"{file}: this is JSON, but not an object", Exit.WRONG_USAGE)
    return fields


def _standard_input() -> bytes:
    with invitation() if os.isatty(0) else nullcontext(), open(0, "rb", closefd=False) as opened:
        return opened.read()


def _content(file: str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


async def _answer(request: Request, sending: Sending) -> Answer:
    client = OutplanClient(
        sending.amqp_url,
        prefix=sending.prefix,
        timeout=sending.timeout,
        validate=sending.validate,
    )
    try:
        # A body that is refused here needs no broker.
        request.encoded(validate=sending.validate)
        async with client:
            if sending.wait:
                return Answer(request, result=await client.ask(request))
            await client.send(request)
    except CommandRejected as error:
        return Answer(request, problem=error.problem)
    except OutcomeUnknown as error:
        return Answer(request, trouble=error.trouble)
    return Answer(request)


def _untold(request: Request, answer: Answer, error: OSError) -> str:
    return (
        f"{answer.status}, but standard output takes no more of it: {error.strerror}\n"
        "To have the whole outcome, send the same again with\n"
        f"  --message-id {legible(request.message_id)}"
    )


def _left_open(request: Request, trouble: str) -> str:
    return (
        f"no verdict on the command {legible(request.message_id)}: {legible(trouble)}\n"
        "It may have taken effect, or may yet. To know, send the same again with\n"
        f"  --message-id {legible(request.message_id)}\n"
        "It is not applied twice."
    )

"""Build parsed commands, and shorten outcomes to one word."""

from typing import Any

from outplan.domain.codec import Outcome, ParsedCommand
from tests.support.samples import ID, create_body, request

QUEUE = "outplan.commands"


def create(id_: str = "c-1", **more: Any) -> ParsedCommand:
    return request(create_body(), message_id=id_, **more)


def update(id_: str, tag: int = 1, redelivered: bool = False, **fields: Any) -> ParsedCommand:
    body = {"id": ID, **fields}
    return request(body, "outplan_update", message_id=id_, tag=tag, redelivered=redelivered)


def delete(id_: str, tag: int = 1, redelivered: bool = False, **fields: Any) -> ParsedCommand:
    body = {"id": ID, **fields}
    return request(body, "outplan_delete", message_id=id_, tag=tag, redelivered=redelivered)


def read_code(outcome: Outcome) -> str:
    """Return the problem code of a rejected command, and the status of any other."""
    return outcome.problem.code if outcome.problem else outcome.status


def make_conflict_pair() -> tuple[ParsedCommand, ParsedCommand]:
    """Build a command that is rejected, and a later one that would make it acceptable."""
    return update("early", tag=1, name="early", expected_version=2), update(
        "late", tag=2, name="late", expected_version=1
    )


def redeliver(command: ParsedCommand, tag: int) -> ParsedCommand:
    """Build the redelivery of a command under a new delivery tag."""
    name = command.delivery.command_name
    body = command.delivery.body
    return request(body, name, message_id=command.command_id, tag=tag, redelivered=True)

"""Parse the lines of an import.

A line is a command (it has the member ``command``), an event, or an outplan. An event becomes the
command that repeats it. An outplan becomes a create, also in the form that the service exports.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID, uuid5

import orjson

from outplan.cli.lines import MAX_LINE_BYTES, Line
from outplan.client import Request
from outplan.contract.fields import MAX_MESSAGE_ID_BYTES, NEVER
from outplan.contract.messages import COMMANDS, CommandName, Problem

_NAMESPACE: Final = UUID("0b0ad0a6-5d3a-5e0c-8c57-6f9d6d0ce0f5")
_MEMBERS: Final = frozenset({"command", "body", "message_id"})
_TIMES: Final = ("tm_create", "tm_update", "tm_delete")
_REPEATED: Final = {
    "outplan_created": "outplan_create",
    "outplan_updated": "outplan_update",
    "outplan_deleted": "outplan_delete",
}


class InvalidLine(Exception):
    """Raised when a line holds nothing to send; ``problem`` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(code, detail, None)


@dataclass(frozen=True, slots=True)
class DeletedOutplan:
    """Stand for a deleted outplan, which an import skips."""


def parse_line(line: Line, label: str = "") -> Request | DeletedOutplan:
    """Parse a line. Raises InvalidLine.

    The command's id is derived from the line's number and content and from the label, so that the
    same file makes the same commands each time.
    """
    members = _load_object(line)
    if "command" in members:
        return _parse_command(members, _derive_id(line, label))
    if isinstance(members.get("data"), dict) and str(members.get("type")) in _REPEATED:
        return _parse_event(members, _derive_id(line, label))
    return _parse_outplan(members, _derive_id(line, label))


def _load_object(line: Line) -> dict[str, Any]:
    if line.is_overlong:
        raise InvalidLine(
            "too_large", f"the line has {line.size} bytes; the limit is {MAX_LINE_BYTES}"
        )
    try:
        members = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        where = f"at character {error.pos + 1}"
        raise InvalidLine("invalid_json", f"{error.msg}, {where}") from None
    if not isinstance(members, dict):
        raise InvalidLine("invalid_json", "the line is JSON, but not an object")
    return members


def _derive_id(line: Line, label: str) -> str:
    return str(uuid5(_NAMESPACE, f"{label}\n{line.number}\n{line.content.decode()}"))


def _parse_command(members: dict[str, Any], derived_id: str) -> Request:
    name, body = str(members["command"]), members.get("body")
    full = name if name in COMMANDS else f"outplan_{name}"
    if full not in COMMANDS:
        raise InvalidLine("unknown_command", f"command must be one of {', '.join(COMMANDS)}")
    if members.keys() - _MEMBERS or not isinstance(body, dict):
        detail = "a command has the members command, body (an object) and optionally message_id"
        raise InvalidLine("invalid_command", detail)
    message_id = members.get("message_id", derived_id)
    if not isinstance(message_id, str) or not 0 < len(message_id.encode()) <= MAX_MESSAGE_ID_BYTES:
        raise InvalidLine("missing_message_id", "message_id must be a string of 1 to 255 bytes")
    return Request(cast(CommandName, full), body, message_id)


def _parse_event(members: dict[str, Any], derived_id: str) -> Request | DeletedOutplan:
    name, data = cast(CommandName, _REPEATED[members["type"]]), members["data"]
    if name == "outplan_create":
        return _parse_outplan(data, derived_id)
    changed = members.get("changed")
    fields = {"id", *map(str, changed)} if isinstance(changed, list) else {"id"}
    return Request(name, {field: data[field] for field in fields & data.keys()}, derived_id)


def _parse_outplan(outplan: dict[str, Any], derived_id: str) -> Request | DeletedOutplan:
    """Remove the fields that the service sets; keep values that it would not have written."""
    added: set[str] = {name for name in _TIMES if name in outplan and _is_time(outplan[name])}
    if "tm_delete" in added and not _is_alive(outplan["tm_delete"]):
        return DeletedOutplan()
    if type(outplan.get("version")) is int:
        added.add("version")
    body = {name: value for name, value in outplan.items() if name not in {*added, "_id"}}
    if "_id" in outplan:
        body.setdefault("id", outplan["_id"])
    return Request("outplan_create", body, derived_id)


def _is_time(value: object) -> bool:
    """Accept every form in which VoIPBIN writes times; null means never."""
    try:
        return value is None or bool(datetime.fromisoformat(cast(str, value)))
    except (TypeError, ValueError):
        return False


def _is_alive(tm_delete: str | None) -> bool:
    return tm_delete is None or tm_delete[:4] == NEVER[:4]

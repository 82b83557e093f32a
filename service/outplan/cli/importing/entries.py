"""What the lines of an import mean: each a command, or nothing to do, or a problem.

A line is a command (it has the member ``command``), an event, or an outplan. Events become the
commands that repeat them; outplans become creates, also as they are exported from the service.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID, uuid5

import orjson

from outplan.cli.importing.lines import MAX_LINE_BYTES, Line
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


class Wrong(Exception):
    """Raised when a line says nothing that could be sent; ``problem`` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(code, detail, None)


@dataclass(frozen=True, slots=True)
class Deleted:
    """An outplan that is deleted: there is nothing to create."""


def entry(line: Line, label: str = "") -> Request | Deleted:
    """Read a line. Raises Wrong.

    Its command's id follows from its number, its content and the label, so that the same file
    means the same commands each time.
    """
    members = _object(line)
    if "command" in members:
        return _command(members, _derived_id(line, label))
    if isinstance(members.get("data"), dict) and str(members.get("type")) in _REPEATED:
        return _event(members, _derived_id(line, label))
    return _create(members, _derived_id(line, label))


def _object(line: Line) -> dict[str, Any]:
    if line.overlong:
        raise Wrong("too_large", f"the line has {line.size} bytes; the limit is {MAX_LINE_BYTES}")
    try:
        members = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        where = f"at character {error.pos + 1}"
        raise Wrong("invalid_json", f"{error.msg}, {where}") from None
    if not isinstance(members, dict):
        raise Wrong("invalid_json", "each line has to be a JSON object, and this is none")
    return members


def _derived_id(line: Line, label: str) -> str:
    return str(uuid5(_NAMESPACE, f"{label}\n{line.number}\n{line.content.decode()}"))


def _command(members: dict[str, Any], derived_id: str) -> Request:
    name, body = str(members["command"]), members.get("body")
    full = name if name in COMMANDS else f"outplan_{name}"
    if full not in COMMANDS:
        raise Wrong("unknown_command", f"command is to be one of {', '.join(COMMANDS)}")
    if members.keys() - _MEMBERS or not isinstance(body, dict):
        detail = "a command's line has command, body (an object) and perhaps message_id, no more"
        raise Wrong("invalid_command", detail)
    message_id = members.get("message_id", derived_id)
    if not isinstance(message_id, str) or not 0 < len(message_id.encode()) <= MAX_MESSAGE_ID_BYTES:
        raise Wrong("missing_message_id", "message_id is to be text of 1 to 255 bytes")
    return Request(cast(CommandName, full), body, message_id)


def _event(members: dict[str, Any], derived_id: str) -> Request | Deleted:
    name, data = cast(CommandName, _REPEATED[members["type"]]), members["data"]
    if name == "outplan_create":
        return _create(data, derived_id)
    changed = members.get("changed")
    fields = {"id", *map(str, changed)} if isinstance(changed, list) else {"id"}
    return Request(name, {field: data[field] for field in fields & data.keys()}, derived_id)


def _create(outplan: dict[str, Any], derived_id: str) -> Request | Deleted:
    """Take from an outplan what the service adds itself, and nothing that only looks like it."""
    added: set[str] = {name for name in _TIMES if name in outplan and _is_time(outplan[name])}
    if "tm_delete" in added and not _lives(outplan["tm_delete"]):
        return Deleted()
    if type(outplan.get("version")) is int:
        added.add("version")
    body = {name: value for name, value in outplan.items() if name not in {*added, "_id"}}
    if "_id" in outplan:
        body.setdefault("id", outplan["_id"])
    return Request("outplan_create", body, derived_id)


def _is_time(value: object) -> bool:
    """Any of the forms in which VoIPBIN writes times; null is "never"."""
    try:
        return value is None or bool(datetime.fromisoformat(cast(str, value)))
    except (TypeError, ValueError):
        return False


def _lives(tm_delete: str | None) -> bool:
    return tm_delete is None or tm_delete[:4] == NEVER[:4]

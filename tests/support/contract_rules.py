"""Judge commands by the contract's rules, written anew from docs/contract.md.

The checker and the fuzzer's oracle compare the service with these rules.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

Document = dict[str, Any]

NEVER: Final = "9999-01-01 00:00:00.000000"
TIMES: Final = ("tm_create", "tm_update", "tm_delete")
_DEFAULTS: Final[Document] = {
    "detail": "",
    "dial_timeout": 30_000,
    "try_interval": 60_000,
    **{f"max_try_count_{n}": 0 for n in range(5)},
}
_ADDRESS: Final[Document] = {"target_name": "", "name": "", "detail": ""}
_CONDITIONS: Final = frozenset({"id", "customer_id", "expected_version"})


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command, its defaults filled in; those with the same content are equal."""

    name: str
    body: Document

    @property
    def outplan_id(self) -> str | None:
        return self.body.get("id")


@dataclass(frozen=True, slots=True)
class Ruling:
    """The outcome that the contract demands: ``accepted``, ``unchanged`` or a problem code.

    ``fields`` is the document afterwards without its times, if the command is accepted.
    """

    outcome: str
    fields: Document | None = None


def parse_command(name: str, body: str) -> Command:
    """Parse a well-formed body and fill in the defaults."""
    parsed: Document = json.loads(body.encode("latin-1"))
    if "source" in parsed:
        parsed["source"] = {**_ADDRESS, **parsed["source"]}
    if name == "outplan_create":
        parsed = {**_DEFAULTS, **parsed}
    for key in ("id", "customer_id"):
        if key in parsed:
            parsed[key] = parsed[key].lower()
    return Command(name, parsed)


def without_times(document: Document) -> Document:
    """Return a document without its times."""
    return {name: value for name, value in document.items() if name not in TIMES}


def judge(before: Document | None, version: int, command: Command) -> Ruling:
    """Judge a command against a document at a version; None means that there is none yet."""
    if command.name == "outplan_create":
        if before is not None:
            return Ruling("already_exists")
        return Ruling("accepted", dict(command.body))
    body = command.body
    deleted = before is not None and before["tm_delete"] != NEVER
    is_update = command.name == "outplan_update"
    if before is None or body.get("customer_id", before["customer_id"]) != before["customer_id"]:
        return Ruling("not_found")
    if is_update and deleted:
        return Ruling("not_found")
    if body.get("expected_version", version) != version:
        return Ruling("version_conflict")
    now = without_times(before)
    if not is_update:
        return Ruling("unchanged") if deleted else Ruling("accepted", now)
    wanted = {**now, **{k: v for k, v in body.items() if k not in _CONDITIONS}}
    return Ruling("unchanged") if wanted == now else Ruling("accepted", wanted)

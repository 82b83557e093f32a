"""Predict a message's outcome without the service's own parser and decider.

The order of the problem codes, strict JSON and ``tests.support.contract_rules`` are written anew
from the contract. Only schema validity comes from ``outplan.contract``; the runner checks that
against a second JSON Schema implementation now and then.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import jsonschema
import jsonschema_rs
from referencing import Registry, Resource

from outplan.contract import schemas
from outplan.mongodb.validators import validators
from outplan.rabbitmq.frames import WireProperties
from tests.support.contract_rules import Command, Document, judge, parse_command

LIMIT: Final = 262_144
NAMES: Final = ("outplan_create", "outplan_update", "outplan_delete")
# Nobody says where sane nesting ends; between these either verdict will do.
_SANE_DEPTH: Final = 500
_UUID_TYPES: Final = ("agent", "ai", "ai_team", "conference", "webchat", "web_session")


class NotJson(Exception):
    """Raised when a body is no JSON object by the contract's strict reading."""


class TooDeep(Exception):
    """Raised when a body is nested past what any reader of JSON must take."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was accepted before under a message_id."""

    command: Command


@dataclass(frozen=True, slots=True)
class Expected:
    """``outcome`` is accepted, unchanged or a code; None where the contract leaves it open."""

    outcome: str | None
    duplicate: bool = False
    settings: Document | None = None


def form(properties: WireProperties, raw_id: bytes, routing_key: str, body: bytes) -> str | None:
    """The code that a message deserves before its schema is asked, or None."""
    if not _is_utf8(raw_id) or not raw_id:
        return "missing_message_id"
    if (properties.message_type or routing_key) not in NAMES:
        return "unknown_command"
    if len(body) > LIMIT:
        return "too_large"
    encoding = properties.content_encoding
    if encoding and encoding.lower() not in ("utf-8", "identity"):
        return "invalid_json"
    return None


def strict_object(body: bytes) -> Document:
    """The object that a body holds. Raises NotJson and TooDeep."""
    if body.count(b"[") + body.count(b"{") > _SANE_DEPTH and _depth(body) > _SANE_DEPTH:
        raise TooDeep
    try:
        text = body.decode()
        found = _strictly(text)
        if "\\u" in text:
            # Also in what a later member of the same name replaces.
            everything = _strictly(text, object_pairs_hook=list)
            json.dumps(everything, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotJson from error
    if not isinstance(found, dict):
        raise NotJson
    return found


def judged(
    name: str, body: bytes, state: Document | None, version: int
) -> tuple[Command, Expected]:
    """What the contract's rules make of a well-formed command against an outplan."""
    given = _lowered(parse_command(name, body.decode("latin-1")))
    found = judge(state, version, given)
    return given, Expected(found.outcome, settings=found.fields)


def same(one: Command, other: Command) -> bool:
    """Whether two commands have the same content."""
    return one.name == other.name and one.body == other.body


@cache
def stored_form(collection: str) -> jsonschema_rs.Draft4Validator:
    """MongoDB's validator for a collection, as far as JSON Schema can say the same."""
    schema = _translated(validators()[collection]["$jsonSchema"])
    return jsonschema_rs.Draft4Validator(schema, pattern_options=jsonschema_rs.RegexOptions())


@cache
def other_implementation(name: str) -> Any:
    """The schema ``name`` in an implementation that shares nothing with the service's."""
    files = {n: json.loads(schemas.schema_text(n)) for n in schemas.schema_names()}
    resources = [(schema["$id"], Resource.from_contents(schema)) for schema in files.values()]
    registry = Registry().with_resources(resources)
    return jsonschema.Draft202012Validator(files[name], registry=registry)


def _translated(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_translated(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _translated(value) for key, value in schema.items() if key != "bsonType"}
    if (kind := schema.get("bsonType")) is not None:
        found["type"] = "integer" if kind == ["int", "long"] else kind
    if isinstance(pattern := schema.get("pattern"), str):
        # Here ``$`` is the very end.
        found["pattern"] = pattern.replace("\\z", "$")
    return found


def _lowered(given: Command) -> Command:
    source = given.body.get("source")
    if source is None or source["type"] not in _UUID_TYPES:
        return given
    lower = {**source, "target": source["target"].lower()}
    return replace(given, body={**given.body, "source": lower})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _depth(body: bytes) -> int:
    """How deep brackets nest, those in texts counted too: at least the true depth."""
    depth = deepest = 0
    for byte in body:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _strictly(text: str, **how: Any) -> Any:
    return json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_bounded, **how)


def _refused(token: str) -> None:
    raise ValueError(token)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def _bounded(text: str) -> int | float:
    return int(text) if len(text) < 20 else _finite(text)

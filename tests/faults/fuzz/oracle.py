"""Predict a message's outcome without the service's own parser and decider.

The order of the problem codes, strict JSON and ``tests.support.contract_rules`` are written anew
from the contract. Only schema validity comes from ``outplan.contract``; the runner checks that
against a second JSON Schema implementation now and then.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import jsonschema
import jsonschema_rs
from referencing import Registry, Resource

from outplan.contract import schemas
from outplan.mongodb.validators import build_validators
from outplan.rabbitmq.frames import WireProperties
from tests.support.contract_rules import Command, Document, judge, parse_command

MAX_BODY: Final = 262_144
NAMES: Final = ("outplan_create", "outplan_update", "outplan_delete")
# The contract sets no limit of nesting: past this depth both outcomes are right.
_MAX_SURE_DEPTH: Final = 500
_SLOT: Final = re.compile(r"\.[0-9a-f]{2}\Z")
_UUID_TYPES: Final = ("agent", "ai", "ai_team", "conference", "webchat", "web_session")


class NotJsonError(Exception):
    """Raised if a body is no JSON object by the contract's strict reading."""


class TooDeepError(Exception):
    """Raised if a body is nested deeper than every JSON reader must accept."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted ``outcome``: accepted, unchanged or a code; None if any is right.

    ``fields`` is the document afterwards without its times.
    """

    outcome: str | None
    duplicate: bool = False
    fields: Document | None = None


def check_form(
    properties: WireProperties, raw_id: bytes, routing_key: str, body: bytes
) -> str | None:
    """Return the problem code that a message deserves before its schema is checked, or None."""
    if not _is_utf8(raw_id) or not raw_id:
        return "missing_message_id"
    if (properties.message_type or _SLOT.sub("", routing_key)) not in NAMES:
        return "unknown_command"
    if len(body) > MAX_BODY:
        return "too_large"
    encoding = properties.content_encoding
    if encoding and encoding.lower() not in ("utf-8", "identity"):
        return "invalid_json"
    return None


def has_flawed_properties(properties: WireProperties) -> bool:
    """Return whether a property that the worker would copy is no text."""
    spans = (properties.spans.get(name) for name in ("correlation_id", "reply_to"))
    return not all(_is_utf8(properties.raw[slice(*span)][1:]) for span in spans if span)


def parse_object(body: bytes) -> Document:
    """Parse the object in a body. Raises NotJsonError and TooDeepError."""
    if body.count(b"[") + body.count(b"{") > _MAX_SURE_DEPTH and _depth(body) > _MAX_SURE_DEPTH:
        raise TooDeepError
    try:
        text = body.decode()
        parsed = _parse_strictly(text)
        if "\\u" in text:
            # Check members too that a later one of the same name replaces.
            everything = _parse_strictly(text, object_pairs_hook=list)
            json.dumps(everything, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise NotJsonError from error
    if not isinstance(parsed, dict):
        raise NotJsonError
    return parsed


def predict_ruling(
    name: str, body: bytes, document: Document | None, version: int
) -> tuple[Command, Prediction]:
    """Judge a well-formed command against an outplan at a version."""
    command = _lower_uuid_target(parse_command(name, body.decode("latin-1")))
    ruling = judge(document, version, command)
    return command, Prediction(ruling.outcome, fields=ruling.fields)


@cache
def mongodb_validator(collection: str) -> jsonschema_rs.Draft4Validator:
    """Translate MongoDB's validator of a collection to JSON Schema, as far as possible."""
    schema = _to_json_schema(build_validators()[collection]["$jsonSchema"])
    return jsonschema_rs.Draft4Validator(schema, pattern_options=jsonschema_rs.RegexOptions())


@cache
def independent_validator(name: str) -> Any:
    """Build a validator from a library that shares no code with the service's."""
    files = {n: json.loads(schemas.read_schema_text(n)) for n in schemas.list_schema_names()}
    resources = [(schema["$id"], Resource.from_contents(schema)) for schema in files.values()]
    registry = Registry().with_resources(resources)
    return jsonschema.Draft202012Validator(files[name], registry=registry)


def _to_json_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_to_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parsed = {key: _to_json_schema(value) for key, value in schema.items() if key != "bsonType"}
    if (kind := schema.get("bsonType")) is not None:
        parsed["type"] = "integer" if kind == ["int", "long"] else kind
    if isinstance(pattern := schema.get("pattern"), str):
        # JSON Schema's ``$`` is the end of the text.
        parsed["pattern"] = pattern.replace("\\z", "$")
    return parsed


def _lower_uuid_target(command: Command) -> Command:
    source = command.body.get("source")
    if source is None or source["type"] not in _UUID_TYPES:
        return command
    lower = {**source, "target": source["target"].lower()}
    return replace(command, body={**command.body, "source": lower})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _depth(body: bytes) -> int:
    """Return the depth of brackets, those in strings included: an upper bound of the real depth."""
    depth = deepest = 0
    for byte in body:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _parse_strictly(text: str, **how: Any) -> Any:
    return json.loads(
        text, parse_constant=_refuse, parse_float=_parse_finite, parse_int=_parse_int, **how
    )


def _refuse(token: str) -> None:
    raise ValueError(token)


def _parse_finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) < 20 else _parse_finite(text)

"""Define MongoDB's collections: names, indexes and ``$jsonSchema`` validators.

MongoDB reads a dialect of JSON Schema draft 4, without ``if``, ``const`` and ``$ref``. So this
module repeats the contract's rules for stored documents. The examples in ``schemas/`` are run
against both.
"""

from typing import Any, Final

from outplan.contract import fields
from outplan.contract import messages as m
from outplan.domain.layout import MAX_PARTITIONS

OUTPLANS: Final = "outplans"
EVENTS: Final = "outplan_events"
FENCES: Final = "outplan_fences"
LAYOUTS: Final = "outplan_layouts"
WORKERS: Final = "outplan_workers"
# The unique index on the events.
VERSION_INDEX: Final = "outplan_version"
VERSION_KEYS: Final = (("outplan_id", 1), ("version", 1))
# The index that lets MongoDB delete the documents of workers that were killed.
SEEN_INDEX: Final = "seen_1"
SEEN_KEYS: Final = (("seen", 1),)
FORGET_SECONDS: Final = 3_600

Schema = dict[str, Any]

_UUID: Final = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
# What an update of a stored document checks: a document that breaks a rule which came later stays
# changeable.
VALIDATION_LEVEL: Final = "moderate"

_TARGETS: Final[tuple[tuple[list[str], Schema], ...]] = (
    (["tel", "whatsapp"], {"pattern": fields.E164_PATTERN}),
    (["email"], {"pattern": fields.EMAIL_PATTERN, "maxLength": fields.MAX_EMAIL}),
    (["sip"], {"pattern": fields.SIP_PATTERN}),
    (["extension", "line"], {"minLength": 1, "maxLength": 255}),
    (
        ["agent", "ai", "ai_team", "conference", "webchat", "web_session"],
        {"pattern": _UUID, "not": {"enum": [fields.NIL_UUID]}},
    ),
)


def _text(**rules: Any) -> Schema:
    return {"bsonType": "string", **_closed_pattern(rules)}


def _closed_pattern(rules: Schema) -> Schema:
    """End the pattern in ``\\z``: in MongoDB ``$`` lets a final line break through."""
    pattern = rules.get("pattern")
    return {**rules, "pattern": f"{pattern[:-1]}\\z"} if pattern else rules


def _number(minimum: int, maximum: int) -> Schema:
    return {"bsonType": ["int", "long"], "minimum": minimum, "maximum": maximum}


def _closed_object(**properties: Schema) -> Schema:
    """Describe an object with these members and no others."""
    return {
        "bsonType": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _uuid() -> Schema:
    return _text(pattern=_UUID, **{"not": {"enum": [fields.NIL_UUID]}})


def _time() -> Schema:
    return _text(pattern=fields.TIMESTAMP_PATTERN)


def _version() -> Schema:
    return _number(1, 9_007_199_254_740_991)


def _address() -> Schema:
    return {
        **_closed_object(
            type=_text(),
            target=_text(),
            target_name=_text(),
            name=_text(pattern=fields.NO_CONTROL_PATTERN),
            detail=_text(),
        ),
        "anyOf": [
            {"properties": {"type": {"enum": types}, "target": _closed_pattern(rule)}}
            for types, rule in _TARGETS
        ],
    }


def _fields() -> dict[str, Schema]:
    """Describe the members of an outplan, without its id."""
    return {
        "customer_id": _uuid(),
        "name": _text(minLength=1, maxLength=255, pattern=fields.NO_CONTROL_PATTERN),
        "detail": _text(maxLength=65_535),
        "source": _address(),
        "dial_timeout": _number(1_000, 600_000),
        "try_interval": {
            "anyOf": [{"enum": [0]}, _number(1_000, 2_147_483_647)],
            "bsonType": ["int", "long"],
        },
        **{f"max_try_count_{n}": _number(0, 1_000) for n in range(5)},
        "tm_create": _time(),
        "tm_update": _time(),
        "tm_delete": _time(),
    }


def _characters() -> Schema:
    """Describe the rules on characters, which events with data from before them may break."""
    blank = _closed_pattern({"pattern": fields.BLANK_PATTERN})
    label = _text(pattern=fields.LABEL_PATTERN, **{"not": blank})
    prose = _text(pattern=fields.PROSE_PATTERN)
    safe = _text(pattern=fields.SAFE_SIP_PATTERN)
    source = {
        "properties": {"target": label, "target_name": label, "name": label, "detail": prose},
        "anyOf": [
            {"properties": {"type": {"not": {"enum": ["sip"]}}}},
            {"properties": {"target": safe}},
        ],
    }
    return {"properties": {"name": label, "detail": prose, "source": source}}


def build_validators() -> dict[str, Schema]:
    """Return each collection's validator, as ``{"$jsonSchema": …}``."""
    event = _closed_object(
        _id=_text(minLength=1, maxLength=255),
        outplan_id=_uuid(),
        customer_id=_uuid(),
        version=_version(),
        type={"enum": ["outplan_created", "outplan_updated", "outplan_deleted"]},
        time=_time(),
        changed={"bsonType": "array", "minItems": 1, "items": {"enum": list(m.Update.CHANGEABLE)}},
        digest=_text(pattern=r"^[0-9a-f]{64}$"),
        data=_closed_object(id=_uuid(), **_fields()),
    )
    event["required"].remove("changed")
    fence = _closed_object(
        _id=_text(minLength=1),
        epoch=_number(1, 2**53),
        generation=_number(0, 2**53),
        crashes=_number(0, 2**53),
        worker=_text(),
        session={"bsonType": "binData"},
        batches=_number(0, 2**53),
        verdicts={"bsonType": "array"},
        trial=_closed_object(message=_text(), times=_number(0, 100)),
        committed={"bsonType": "date"},
        lag={"bsonType": "double", "minimum": 0},
    )
    for optional in ("trial", "committed", "lag"):
        fence["required"].remove(optional)
    # A fence from before there were layouts has neither.
    fence["required"].remove("generation")
    fence["required"].remove("crashes")
    partitions = _number(1, MAX_PARTITIONS)
    layout = _closed_object(
        _id=_text(minLength=1),
        generation=_number(1, 2**53),
        phase={"enum": ["steady", "divert", "replay", "retire"]},
        partitions=partitions,
        former=partitions,
        token=_text(),
        drained={"bsonType": "array", "items": _text()},
    )
    worker = _closed_object(
        _id=_text(minLength=1),
        prefix=_text(minLength=1),
        seen={"bsonType": "date"},
        active={"bsonType": "array", "items": _text()},
        unacked=_number(0, 2**53),
        failures={"bsonType": "object"},
        unordered=_number(0, 2**53),
    )
    # A worker of an earlier version announces none of these.
    for added in ("active", "unacked", "failures"):
        worker["required"].remove(added)
    schemas = {
        OUTPLANS: {
            **_closed_object(_id=_uuid(), **_fields(), version=_version()),
            "allOf": [_characters()],
        },
        EVENTS: event,
        FENCES: fence,
        LAYOUTS: layout,
        WORKERS: worker,
    }
    return {name: {"$jsonSchema": schema} for name, schema in schemas.items()}


def build_collection_options() -> dict[str, dict[str, Any]]:
    """Return what each collection is created with, and changed to if it differs."""
    return {
        name: {"validator": validator, "validationLevel": VALIDATION_LEVEL}
        for name, validator in build_validators().items()
    }

"""MongoDB's validators, as far as they can be tested without MongoDB."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from outplan.contract import fields
from outplan.contract import messages as m
from outplan.contract.messages import Outplan
from outplan.mongodb.validators import EVENTS, FENCES, LAYOUTS, OUTPLANS, WORKERS, build_validators

FITTING: list[tuple[str, str]] = [
    (fields.TIMESTAMP_PATTERN, fields.NEVER),
    (fields.E164_PATTERN, "+15559876543"),
    (fields.EMAIL_PATTERN, "a@b.example"),
    (fields.SIP_PATTERN, "a@b"),
    (fields.SAFE_SIP_PATTERN, "a@b"),
    (fields.NO_CONTROL_PATTERN, "a name"),
    (fields.LABEL_PATTERN, "a name"),
    (fields.PROSE_PATTERN, "a line\nand another"),
]
# Other rules refuse line breaks in targets; details may have them.
MANY_LINES = {fields.SIP_PATTERN, fields.SAFE_SIP_PATTERN, fields.PROSE_PATTERN}
ONE_LINE = [(pattern, value) for pattern, value in FITTING if pattern not in MANY_LINES]


def as_python_has_it(pattern: str) -> str:
    """Rewrite a PCRE pattern for Python: MongoDB's end of text is ``\\z``."""
    assert pattern.endswith(r"\z"), pattern
    return f"{pattern[:-2]}\\Z"


def of_the_validators(pattern: str) -> str:
    """Return a pattern of the contract as MongoDB has it."""
    assert pattern.endswith("$"), pattern
    return f"{pattern[:-1]}\\z"


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        yield path, schema
        for key, part in schema.items():
            yield from objects(part, f"{path}/{key}")
    if isinstance(schema, list):
        for n, part in enumerate(schema):
            yield from objects(part, f"{path}/{n}")


def schema_of(collection: str) -> dict[str, Any]:
    found: dict[str, Any] = build_validators()[collection]["$jsonSchema"]
    return found


def patterns() -> set[str]:
    return {
        each["pattern"]
        for name in build_validators()
        for _, each in objects(schema_of(name))
        if "pattern" in each
    }


def test_there_are_five_collections() -> None:
    assert build_validators().keys() == {OUTPLANS, EVENTS, FENCES, LAYOUTS, WORKERS}


def test_a_stored_outplan_has_the_documents_fields_and_a_version() -> None:
    fields = set(Outplan.model_fields) - {"id"} | {"_id", "version"}
    assert set(schema_of(OUTPLANS)["properties"]) == fields
    assert set(schema_of(OUTPLANS)["required"]) == fields


def test_a_stored_event_has_the_contracts_fields() -> None:
    fields = {"_id", "outplan_id", "customer_id", "version", "type", "time", "changed", "digest",
              "data"}  # fmt: skip
    assert set(schema_of(EVENTS)["properties"]) == fields
    assert set(schema_of(EVENTS)["required"]) == fields - {"changed"}
    assert set(schema_of(EVENTS)["properties"]["data"]["required"]) == set(Outplan.model_fields)


@pytest.mark.parametrize("name", [OUTPLANS, EVENTS, FENCES])
def test_no_object_allows_unknown_fields(name: str) -> None:
    for path, each in objects(schema_of(name)):
        if each.get("bsonType") == "object":
            assert each["additionalProperties"] is False, path


@pytest.mark.parametrize("name", [OUTPLANS, EVENTS, FENCES])
def test_only_mongodbs_keywords_are_used(name: str) -> None:
    """MongoDB refuses to create a collection with any other keyword."""
    known = {
        "bsonType", "properties", "required", "additionalProperties", "enum", "pattern",
        "minLength", "maxLength", "minimum", "maximum", "items", "minItems", "allOf", "anyOf",
        "not",
    }  # fmt: skip
    for path, each in objects(schema_of(name)):
        if not path.endswith("/properties"):
            assert each.keys() <= known, path


@pytest.mark.parametrize("name", [OUTPLANS, EVENTS])
def test_a_source_is_checked_by_its_type(name: str) -> None:
    [source] = [
        s for path, s in objects(schema_of(name)) if path.endswith("/source") and "required" in s
    ]
    named = [kind for branch in source["anyOf"] for kind in branch["properties"]["type"]["enum"]]
    assert sorted(named) == sorted(
        m.Address.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
    )


def test_patterns_match_valid_values() -> None:
    assert {of_the_validators(pattern) for pattern, _ in FITTING} <= patterns()
    for pattern, value in FITTING:
        assert re.search(as_python_has_it(of_the_validators(pattern)), value), pattern


@pytest.mark.parametrize(("pattern", "value"), ONE_LINE, ids=lambda text: text[:12])
def test_no_pattern_allows_a_final_line_break(pattern: str, value: str) -> None:
    assert not re.search(as_python_has_it(of_the_validators(pattern)), value + "\n")


def test_every_pattern_matches_the_whole_text() -> None:
    for pattern in patterns():
        assert pattern.startswith("^")
        assert pattern.endswith(r"\z")
        assert "$" not in re.sub(r"\[[^\]]*\]", "", pattern), "nor does a part of it end earlier"

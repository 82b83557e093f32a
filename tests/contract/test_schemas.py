"""Check the schema files against the project's rules for them, and against their examples."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final, get_args

import jsonschema
import jsonschema_rs
import pytest
from pydantic import ValidationError

from outplan.contract import schemas
from outplan.contract.messages import EventType
from tests.contract.schema_files import (
    DRAFT_07,
    DRAFT_2020_12,
    EXAMPLES,
    FILES,
    MODELS,
    python_validator,
)

NAMES: Final = tuple(name for name in schemas.list_schema_names() if name != "definitions")
EXPECTED: Final[dict[str, list[str]]] = json.loads((EXAMPLES / "invalid/expected.json").read_text())
# Keywords with the same meaning in draft-07 and 2020-12.
KEYWORDS: Final = frozenset(
    {"$schema", "$id", "$ref", "title", "description", "default", "examples", "definitions"}
    | {"type", "enum", "const", "allOf", "anyOf", "not", "if", "then"}
    | {"required", "properties", "additionalProperties", "items", "minItems", "maxItems"}
    | {"uniqueItems", "pattern", "minLength", "maxLength"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
ANNOTATIONS: Final = ("title", "description", "default", "examples")


def example_params(kind: str) -> list[Any]:
    paths = sorted((EXAMPLES / kind).glob("*/*.json"))
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in paths]


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and every schema nested in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword in ("properties", "definitions"):
        for part in schema.get(keyword, {}).values():
            yield from subschemas(part)
    for keyword in ("allOf", "anyOf"):
        for part in schema.get(keyword, []):
            yield from subschemas(part)
    for keyword in ("items", "not", "if", "then", "additionalProperties"):
        yield from subschemas(schema.get(keyword))


def resolve(schema: dict[str, Any]) -> Any:
    """Return the target of a $ref, or the schema itself if it has none."""
    if "$ref" not in schema:
        return schema
    file, _, pointer = schema["$ref"].partition("#")
    found: Any = FILES[file.removesuffix(".json") or "definitions"]
    for step in pointer.split("/")[1:]:
        found = found[step]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_schema_is_valid_2020_12(name: str) -> None:
    assert FILES[name]["$schema"] == DRAFT_2020_12
    jsonschema_rs.meta.validate(FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_every_schema_is_also_valid_draft_07(name: str) -> None:
    schema = {**FILES[name], "$schema": DRAFT_07}
    jsonschema_rs.meta.validate(schema)


@pytest.mark.parametrize("name", FILES)
def test_schemas_use_only_keywords_shared_by_both_drafts(name: str) -> None:
    for schema in subschemas(FILES[name]):
        assert schema.keys() <= KEYWORDS
        assert "$ref" not in schema or len(schema) == 1


@pytest.mark.parametrize("name", FILES)
def test_each_schema_has_an_id_a_title_and_a_description(name: str) -> None:
    schema = FILES[name]
    assert schema["$id"].endswith(f"/{name}.json")
    assert schema["title"]
    assert schema["description"]


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_described(name: str) -> None:
    for schema in subschemas(FILES[name]):
        if schema.keys().isdisjoint(ANNOTATIONS) and schema.get("type") != "object":
            continue  # narrows fields that are described elsewhere
        for field, rule in schema.get("properties", {}).items():
            assert resolve(rule).get("description"), field


@pytest.mark.parametrize("field", ["dial_timeout", "try_interval"])
def test_each_duration_states_its_unit(field: str) -> None:
    assert "in milliseconds" in FILES["definitions"]["definitions"][field]["description"]


@pytest.mark.parametrize("name", NAMES)
def test_every_object_forbids_unknown_fields(name: str) -> None:
    objects = [s for s in subschemas(FILES[name]) if s.get("type") == "object"]
    assert objects
    assert all(schema["additionalProperties"] is False for schema in objects)


def test_every_reference_resolves_to_a_schema() -> None:
    for schema in FILES.values():
        for part in subschemas(schema):
            assert isinstance(resolve(part), dict)


def test_patterns_use_only_syntax_shared_by_all_regex_dialects() -> None:
    patterns = {s["pattern"] for f in FILES.values() for s in subschemas(f) if "pattern" in s}
    assert patterns
    for pattern in patterns:
        outside_classes = re.sub(r"\[[^]]*\]", "", pattern)
        assert not re.search(r"\(\?|\\[^nx+.]|(?<!\\)\.|[*+?}][?+]", outside_classes), pattern
        assert not re.search(r"\\[^x]|\[:|&&|--|~~", "".join(re.findall(r"\[[^]]*\]", pattern)))


@pytest.mark.parametrize("name", FILES)
def test_inline_examples_are_valid(name: str) -> None:
    schema = FILES[name]
    assert all(schemas.is_valid(name, example) for example in schema.get("examples", []))
    for rule in schema.get("definitions", {}).values():
        validator = jsonschema_rs.Draft202012Validator(
            {**rule, "definitions": FILES["definitions"]["definitions"]},
            registry=jsonschema_rs.Registry([(s["$id"], s) for s in FILES.values()]),
            base_uri=FILES["definitions"]["$id"],
        )
        assert all(validator.is_valid(example) for example in rule.get("examples", []))


def test_the_definitions_file_accepts_no_instance() -> None:
    assert not schemas.is_valid("definitions", {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["valid", "invalid"])
def test_every_schema_has_valid_and_invalid_examples(name: str, kind: str) -> None:
    assert list((EXAMPLES / kind / name).glob("*.json"))


def test_every_invalid_example_lists_its_expected_pointers() -> None:
    invalid = {f"{p.parent.name}/{p.stem}" for p in (EXAMPLES / "invalid").glob("*/*.json")}
    assert invalid == EXPECTED.keys()
    assert all(EXPECTED.values())


@pytest.mark.parametrize("path", example_params("valid"))
def test_a_valid_example_passes_its_schema(path: Path) -> None:
    assert schemas.find_violations(path.parent.name, json.loads(path.read_text())) == ()


@pytest.mark.parametrize("path", example_params("valid"))
def test_a_valid_example_round_trips_through_its_model(path: Path) -> None:
    model = MODELS[path.parent.name]
    message = model.model_validate_json(path.read_bytes())
    dumped = message.model_dump(mode="json", exclude_unset=True)
    assert schemas.is_valid(path.parent.name, dumped)
    assert model.model_validate(dumped) == message


@pytest.mark.parametrize("name", ["outplan", *get_args(EventType), "problem", "reply"])
def test_outgoing_messages_round_trip_without_changes(name: str) -> None:
    for path in (EXAMPLES / "valid" / name).glob("*.json"):
        message = MODELS[name].model_validate_json(path.read_bytes())
        dumped = message.model_dump(mode="json", exclude_unset=True)
        assert dumped == json.loads(path.read_text()), path.stem


@pytest.mark.parametrize("path", example_params("invalid"))
def test_an_invalid_example_fails_at_the_expected_pointers(path: Path) -> None:
    name = path.parent.name
    found = schemas.find_violations(name, json.loads(path.read_text()))
    assert {error.pointer for error in found} == set(EXPECTED[f"{name}/{path.stem}"])


@pytest.mark.parametrize("path", example_params("invalid"))
def test_an_invalid_example_fails_its_model(path: Path) -> None:
    with pytest.raises(ValidationError):
        MODELS[path.parent.name].model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("dialect", "uri"),
    [
        (jsonschema.Draft7Validator, DRAFT_07),
        (jsonschema.Draft202012Validator, DRAFT_2020_12),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_jsonschema_validates_alike_in_both_drafts(name: str, dialect: type[Any], uri: str) -> None:
    validator = python_validator(name, dialect, uri)
    for kind in ("valid", "invalid"):
        for path in (EXAMPLES / kind / name).glob("*.json"):
            instance = json.loads(path.read_text())
            assert validator.is_valid(instance) is (kind == "valid"), path.stem


def test_the_published_outplan_is_an_example_of_command_and_document() -> None:
    document = json.loads((EXAMPLES / "valid/outplan/the-published-example.json").read_text())
    command = json.loads((EXAMPLES / "valid/outplan_create/the-published-example.json").read_text())
    times = {"tm_create", "tm_update", "tm_delete"}
    assert {k: v for k, v in document.items() if k not in times} == command
    assert (document["id"], document["dial_timeout"]) == (
        "d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e",
        30000,
    )


def test_the_schemas_load_from_beside_or_inside_the_package() -> None:
    package = Path(str(resources.files("outplan")))
    folders = (package / "schemas", package.parents[1] / "schemas")
    folder = next(folder for folder in folders if folder.is_dir())
    for name in schemas.list_schema_names():
        assert schemas.read_schema_text(name) == (folder / f"{name}.json").read_bytes()

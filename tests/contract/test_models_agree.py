"""Schemas and models accept and refuse the same instances, in both directions.

Instances are valid examples with a few members taken out, put in or replaced. The replacements
come from the schemas themselves: what fits their patterns, what lies at and just past their
limits. Such near misses find disagreements that random junk does not.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, get_args

import jsonschema
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from referencing import Registry, Resource

from outplan.contract import schemas
from outplan.contract.messages import COMMANDS, Address, Event, EventType, Outplan, Problem, Reply

EXAMPLES: Final = Path(__file__).parents[2] / "schemas/examples"
FILES: Final = {name: json.loads(schemas.schema_text(name)) for name in schemas.schema_names()}
MODELS: Final[dict[str, type[BaseModel]]] = {
    "address": Address,
    "outplan": Outplan,
    **COMMANDS,
    **dict.fromkeys(get_args(EventType), Event),
    "problem": Problem,
    "reply": Reply,
}
# What comes in is also read from parsed JSON; what goes out is read back as text only.
INCOMING: Final = ("address", *COMMANDS)
# A busy machine is no reason to fail.
STEADY: Final = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def keyword_values(schema: Any, *keywords: str) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield from (schema[k] for k in keywords if k in schema)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from keyword_values(part, *keywords)


def gathered(*keywords: str) -> list[Any]:
    return list(keyword_values(list(FILES.values()), *keywords))


def leaves(instance: Any) -> Iterator[Any]:
    yield instance
    if isinstance(instance, dict | list):
        for part in instance.values() if isinstance(instance, dict) else instance:
            yield from leaves(part)


def valid_examples(name: str) -> list[Any]:
    return [json.loads(p.read_text()) for p in sorted((EXAMPLES / "valid" / name).glob("*.json"))]


LIMITS: Final = sorted(
    {int(n) for n in gathered("minimum", "maximum", "exclusiveMaximum")} | {-1, 30, 2**64, 10**30}
)
LENGTHS: Final = sorted({int(n) for n in gathered("minLength", "maxLength")})
PATTERNS: Final = sorted(set(map(str, gathered("pattern"))))
FIELDS: Final = sorted({field for names in gathered("properties") for field in names})
PARTS: Final = [part for name in MODELS for e in valid_examples(name) for part in leaves(e)]
OBJECTS: Final[list[dict[str, Any]]] = [part for part in PARTS if isinstance(part, dict)]
# What each field is somewhere: such a value is mostly valid elsewhere, too.
SEEN: Final = {field: [o[field] for o in OBJECTS if field in o] for o in OBJECTS for field in o}

numbers = st.builds(
    lambda limit, step, kind: kind(limit + step),
    st.sampled_from(LIMITS),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([int, float]),
) | st.sampled_from([0.5, -0.0, 1000.5, 1e300])
texts = (
    st.sampled_from(PATTERNS).flatmap(st.from_regex)
    | st.builds(lambda n, step: "x" * (n + step), st.sampled_from(LENGTHS), st.sampled_from([0, 1]))
    | st.text(max_size=5)
)
atoms = st.none() | st.booleans() | numbers | texts | st.sampled_from([[], {}, [None]])
replacements = st.sampled_from(PARTS).map(deepcopy) | atoms


@st.composite
def text_edits(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    edit = draw(st.sampled_from(["insert", "delete", "upper", "newline", "cut"]))
    if edit == "insert":
        return text[:at] + draw(st.sampled_from(" @+-.~/\n\0\x1b\x85\u2028é0aA😀")) + text[at:]
    if edit == "delete":
        return text[:at] + text[at + 1 :]
    if edit == "upper":
        return text.upper()
    return text + "\n" if edit == "newline" else text[:at]


def nearby(value: Any) -> st.SearchStrategy[Any]:
    """Values that differ a little from ``value``, and some that differ much."""
    if isinstance(value, str):
        return text_edits(value) | replacements
    if type(value) is int:
        return st.sampled_from([value + 1, value - 1, float(value), str(value)]) | replacements
    return replacements


@st.composite
def edits(draw: st.DrawFn, instance: Any) -> Any:
    """One member, at any depth, replaced, removed or added."""
    if not isinstance(instance, dict | list) or not instance:
        return draw(nearby(instance))
    keys = sorted(instance) if isinstance(instance, dict) else list(range(len(instance)))
    key = draw(st.sampled_from(keys))
    changed: Any = instance.copy()
    edit = draw(st.sampled_from(["inside", "inside", "remove", "add", "replace", "swap"]))
    if edit == "inside":
        changed[key] = draw(edits(instance[key]))
    elif edit == "remove":
        del changed[key]
    elif edit == "replace":
        changed[key] = draw(replacements)
    elif edit == "swap" and key in SEEN:
        changed[key] = deepcopy(draw(st.sampled_from(SEEN[key])))
    elif isinstance(changed, dict):
        changed[draw(st.sampled_from(FIELDS) | st.text(max_size=3))] = draw(replacements)
    else:
        changed.append(draw(st.sampled_from(list(instance)) | replacements))
    return changed


@st.composite
def mutants(draw: st.DrawFn, name: str) -> Any:
    """A valid example after up to three edits."""
    instance = draw(st.sampled_from(valid_examples(name)))
    for _ in range(draw(st.integers(0, 3))):
        instance = draw(edits(instance))
    return instance


def model_accepts_json(name: str, instance: Any) -> bool:
    try:
        message = MODELS[name].model_validate_json(json.dumps(instance))
    except ValidationError:
        return False
    return not isinstance(message, Event) or message.type == name


def model_accepts_parsed(name: str, instance: Any) -> bool:
    try:
        MODELS[name].model_validate(instance)
    except ValidationError:
        return False
    return True


def python_validator(name: str) -> Any:
    resources = [(schema["$id"], Resource.from_contents(schema)) for schema in FILES.values()]
    registry = Registry().with_resources(resources)
    return jsonschema.Draft202012Validator(FILES[name], registry=registry)


@pytest.mark.parametrize("name", MODELS)
def test_schema_and_model_agree_on_near_misses(name: str) -> None:
    @settings(STEADY, max_examples=200)
    @given(mutants(name))
    def agree(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is model_accepts_json(name, instance)

    agree()


@pytest.mark.parametrize("name", INCOMING)
def test_schema_and_model_agree_on_parsed_json_that_comes_in(name: str) -> None:
    @settings(STEADY, max_examples=200)
    @given(mutants(name))
    def agree(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is model_accepts_parsed(name, instance)

    agree()


@pytest.mark.parametrize("name", MODELS)
def test_another_implementation_and_regex_engine_agree(name: str) -> None:
    validator = python_validator(name)

    @settings(STEADY, max_examples=50)
    @given(mutants(name))
    def agree(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is validator.is_valid(instance)

    agree()


@pytest.mark.parametrize("type_", get_args(Address.model_fields["type"].annotation))
def test_schema_and_model_agree_on_every_kind_of_target(type_: str) -> None:
    @settings(STEADY, max_examples=50)
    @given(texts | st.sampled_from([p for p in PARTS if isinstance(p, str)]).flatmap(text_edits))
    def agree(target: str) -> None:
        instance = {"type": type_, "target": target}
        assert schemas.is_valid("address", instance) is model_accepts_parsed("address", instance)

    agree()


@pytest.mark.parametrize("name", MODELS)
def test_what_the_model_dumps_fits_the_schema(name: str) -> None:
    @settings(STEADY, max_examples=50)
    @given(mutants(name).filter(lambda instance: model_accepts_json(name, instance)))
    def fits(instance: Any) -> None:
        message = MODELS[name].model_validate_json(json.dumps(instance))
        dumped = message.model_dump(mode="json", exclude_unset=True)
        assert schemas.violations(name, dumped) == ()

    fits()


@pytest.mark.parametrize("name", MODELS)
def test_an_invalid_instance_always_has_an_error_to_show(name: str) -> None:
    @settings(STEADY, max_examples=50)
    @given(mutants(name))
    def shown(instance: Any) -> None:
        found = schemas.violations(name, instance)
        assert bool(found) is not schemas.is_valid(name, instance)
        assert all(len(error.detail) <= 300 for error in found)

    shown()


@pytest.mark.parametrize("name", MODELS)
def test_the_near_misses_include_both_verdicts(name: str) -> None:
    known = valid_examples(name)
    many = settings(STEADY, database=None, max_examples=3000)
    find(mutants(name), lambda i: i not in known and schemas.is_valid(name, i), settings=many)
    find(mutants(name), lambda i: not schemas.is_valid(name, i), settings=many)

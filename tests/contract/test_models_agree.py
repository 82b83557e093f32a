"""Check that schemas and models accept and reject the same instances.

Hypothesis takes valid examples and removes, adds or replaces a few members. The replacements come
from the schemas: text that matches their patterns, numbers at and just past their limits. Such near
misses find disagreements that random data does not.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final, get_args

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from outplan.contract import schemas
from outplan.contract.messages import COMMANDS, Address, Event
from tests.contract.schema_files import EXAMPLES, FILES, MODELS, python_validator

# The worker validates incoming messages as parsed JSON; subscribers read outgoing ones as text.
INCOMING: Final = ("address", *COMMANDS)
# A slow machine must not fail a test.
UNTIMED: Final = settings(
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


def all_values(*keywords: str) -> list[Any]:
    return list(keyword_values(list(FILES.values()), *keywords))


def parts_of(instance: Any) -> Iterator[Any]:
    yield instance
    if isinstance(instance, dict | list):
        for part in instance.values() if isinstance(instance, dict) else instance:
            yield from parts_of(part)


def valid_examples(name: str) -> list[Any]:
    return [json.loads(p.read_text()) for p in sorted((EXAMPLES / "valid" / name).glob("*.json"))]


LIMITS: Final = sorted(
    {int(n) for n in all_values("minimum", "maximum", "exclusiveMaximum")} | {-1, 30, 2**64, 10**30}
)
LENGTHS: Final = sorted({int(n) for n in all_values("minLength", "maxLength")})
PATTERNS: Final = sorted(set(map(str, all_values("pattern"))))
FIELDS: Final = sorted({field for names in all_values("properties") for field in names})
PARTS: Final = [part for name in MODELS for e in valid_examples(name) for part in parts_of(e)]
OBJECTS: Final[list[dict[str, Any]]] = [part for part in PARTS if isinstance(part, dict)]
# Values of each field in the examples; most are valid in another example as well.
FIELD_VALUES: Final = {
    field: [o[field] for o in OBJECTS if field in o] for o in OBJECTS for field in o
}

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
    """Return a strategy for values close to ``value``, and a few unrelated ones."""
    if isinstance(value, str):
        return text_edits(value) | replacements
    if type(value) is int:
        return st.sampled_from([value + 1, value - 1, float(value), str(value)]) | replacements
    return replacements


@st.composite
def edits(draw: st.DrawFn, instance: Any) -> Any:
    """Replace, remove or add one member at any depth."""
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
    elif edit == "swap" and key in FIELD_VALUES:
        changed[key] = deepcopy(draw(st.sampled_from(FIELD_VALUES[key])))
    elif isinstance(changed, dict):
        changed[draw(st.sampled_from(FIELDS) | st.text(max_size=3))] = draw(replacements)
    else:
        changed.append(draw(st.sampled_from(list(instance)) | replacements))
    return changed


@st.composite
def mutants(draw: st.DrawFn, name: str) -> Any:
    """Draw a valid example and edit it up to three times."""
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


@pytest.mark.parametrize("name", MODELS)
def test_schema_and_model_agree_on_near_misses(name: str) -> None:
    @settings(UNTIMED, max_examples=200)
    @given(mutants(name))
    def check(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is model_accepts_json(name, instance)

    check()


@pytest.mark.parametrize("name", INCOMING)
def test_schema_and_model_agree_on_parsed_incoming_json(name: str) -> None:
    @settings(UNTIMED, max_examples=200)
    @given(mutants(name))
    def check(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is model_accepts_parsed(name, instance)

    check()


@pytest.mark.parametrize("name", MODELS)
def test_jsonschema_and_python_regexes_agree(name: str) -> None:
    validator = python_validator(name)

    @settings(UNTIMED, max_examples=50)
    @given(mutants(name))
    def check(instance: Any) -> None:
        assert schemas.is_valid(name, instance) is validator.is_valid(instance)

    check()


@pytest.mark.parametrize("type_", get_args(Address.model_fields["type"].annotation))
def test_schema_and_model_agree_on_each_address_type(type_: str) -> None:
    @settings(UNTIMED, max_examples=50)
    @given(texts | st.sampled_from([p for p in PARTS if isinstance(p, str)]).flatmap(text_edits))
    def check(target: str) -> None:
        instance = {"type": type_, "target": target}
        assert schemas.is_valid("address", instance) is model_accepts_parsed("address", instance)

    check()


@pytest.mark.parametrize("name", MODELS)
def test_dumped_models_pass_the_schema(name: str) -> None:
    @settings(UNTIMED, max_examples=50)
    @given(mutants(name).filter(lambda instance: model_accepts_json(name, instance)))
    def check(instance: Any) -> None:
        message = MODELS[name].model_validate_json(json.dumps(instance))
        dumped = message.model_dump(mode="json", exclude_unset=True)
        assert schemas.find_violations(name, dumped) == ()

    check()


@pytest.mark.parametrize("name", MODELS)
def test_every_invalid_instance_has_errors(name: str) -> None:
    @settings(UNTIMED, max_examples=50)
    @given(mutants(name))
    def check(instance: Any) -> None:
        found = schemas.find_violations(name, instance)
        assert bool(found) is not schemas.is_valid(name, instance)
        assert all(len(error.detail) <= 300 for error in found)

    check()


@pytest.mark.parametrize("name", MODELS)
def test_near_misses_include_valid_and_invalid_instances(name: str) -> None:
    known = valid_examples(name)
    many = settings(UNTIMED, database=None, max_examples=3000)
    find(mutants(name), lambda i: i not in known and schemas.is_valid(name, i), settings=many)
    find(mutants(name), lambda i: not schemas.is_valid(name, i), settings=many)

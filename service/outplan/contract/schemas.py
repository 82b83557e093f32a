"""The contract's JSON Schema files, compiled once, and what they say of an instance.

The files are the source of truth: rules, units and most of the wording of an error stand in
them and not here. Patterns run on an engine without backtracking, so no text makes them slow.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import Any, Final

import jsonschema_rs

from outplan.contract.fields import MAX_PROBLEM_ERRORS
from outplan.contract.messages import ProblemError

_BASE: Final = "https://outplan.invalid/schemas/"
_MAX_DETAIL: Final = 300
_MAX_QUOTE: Final = 100
# A valid message nests four deep; what lies deeper can only be wrong and is not looked at.
_MAX_DEPTH: Final = 8
_UNIT: Final = re.compile(r"\bin (milliseconds|seconds)\b")
_NOT_QUOTABLE: Final = ProblemError(
    pointer="", detail="holds text that is not valid Unicode, or is nested too deeply"
)


def schema_names() -> tuple[str, ...]:
    """Name every schema file, sorted, without its ``.json``; ``definitions`` is one of them."""
    names = (file.name.partition(".json") for file in _folder().iterdir())
    return tuple(sorted(stem for stem, suffix, rest in names if suffix and not rest))


def schema_text(name: str) -> bytes:
    """Return a schema file as it stands (KeyError for a name that is not a schema's)."""
    if name not in schema_names():
        raise KeyError(name)
    return (_folder() / f"{name}.json").read_bytes()


def is_valid(name: str, instance: object) -> bool:
    """Say whether parsed JSON fits the schema ``name`` (KeyError where there is none)."""
    try:
        return _validator(name).is_valid(instance)
    except ValueError:  # lone surrogates, or nested past the validator's limit
        return False


def violations(name: str, instance: object) -> tuple[ProblemError, ...]:
    """List every broken rule, at most 32, none for a valid instance.

    A pointer leads to the offending member itself, also to one that is missing or unknown.
    Takes what a strict JSON parser returns (lone surrogates are its business, and not always
    noticed here); KeyError where there is no schema ``name``.
    """
    if is_valid(name, instance):
        return ()
    errors = _validator(name).iter_errors(_trimmed(instance))
    broken = dict.fromkeys(pair for error in errors for pair in _broken(error))
    found = tuple(
        ProblemError(pointer=pointer, detail=_clipped(detail, _MAX_DETAIL))
        for pointer, detail in islice(broken, MAX_PROBLEM_ERRORS)
    )
    # What was cut off or replaced may have been all that was wrong.
    return found or (_NOT_QUOTABLE,)


# --- the files -------------------------------------------------------------------------------


@cache
def _folder() -> Traversable:
    """The wheel has the schemas inside the package; a checkout has them beside it."""
    package = resources.files("outplan")
    shipped = package / "schemas"
    return shipped if shipped.is_dir() else package / ".." / ".." / "schemas"


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    return {name: json.loads(schema_text(name)) for name in schema_names()}


@cache
def _registry() -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([(schema["$id"], schema) for schema in _schemas().values()])


@cache
def _validator(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator(
        _schemas()[name],
        registry=_registry(),
        pattern_options=jsonschema_rs.RegexOptions(),
        offline=True,
    )


@cache
def _known_fields() -> frozenset[str]:
    return frozenset(_property_names(list(_schemas().values())))


def _property_names(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _property_names(part)


# --- what is wrong, in words -------------------------------------------------------------------

# By keyword: {value} is the offending value, {limit} what the schema demands of it.
_WORDING: Final = {
    "type": "{value} is not {limit}",
    "enum": "{value} is not one of {limit}",
    "const": "{value} is not {limit}",
    "minimum": "{value} is less than the minimum of {limit}",
    "maximum": "{value} is more than the maximum of {limit}",
    "minLength": "{value} is shorter than the minimum length of {limit}",
    "maxLength": "{value} is longer than the maximum length of {limit}",
    "minItems": "has fewer than {limit} items",
    "maxItems": "has more than {limit} items",
    "uniqueItems": "{value} names something twice",
    "pattern": "{value} is not {limit}",
    "not": "{value} {limit}",
    "anyOf": "{limit}",
    "falseSchema": "does not belong here",
}
_TYPES: Final = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "object": "an object",
    "string": "a string",
}


def _broken(error: jsonschema_rs.ValidationError) -> Iterator[tuple[str, str]]:
    """Turn a validator's error into pointers and details: one for each unknown field."""
    keyword, path = error.kind.name, error.instance_path
    if keyword == "required":
        yield _pointer([*path, error.kind.value]), "is required"
    elif keyword == "additionalProperties":
        yield from (_unknown(path, field) for field in error.kind.value)
    else:
        yield _pointer(path), _detail(error, keyword)


def _unknown(path: list[str | int], field: str) -> tuple[str, str]:
    if len(field) > _MAX_QUOTE:  # a pointer can't be clipped, and must fit into a header
        return _pointer(path), f"{_quoted(field)} is not a known field"
    return _pointer([*path, field]), "is not a known field"


def _detail(error: jsonschema_rs.ValidationError, keyword: str) -> str:
    if keyword not in _WORDING:
        return error.message
    rule = {} if keyword == "falseSchema" else _rule(error)
    words = _WORDING[keyword].format(
        value=_quoted(error.instance), limit=_limit(keyword, rule.get(keyword), rule)
    )
    unit = _UNIT.search(rule.get("description", ""))
    if unit and error.instance_path:
        return f"{words}; {error.instance_path[-1]} is in {unit[1]}"
    return words


def _rule(error: jsonschema_rs.ValidationError) -> dict[str, Any]:
    """The schema that the broken keyword stands in."""
    location = str(error.absolute_keyword_location).rpartition("/")[0]
    rule = _registry().resolver(_BASE).lookup(location).contents
    return rule if isinstance(rule, dict) else {}


def _limit(keyword: str, demand: Any, rule: dict[str, Any]) -> str:
    """Say what a keyword demands; for some the schema says it in its title or description."""
    wording: dict[str, Callable[[], str]] = {
        "type": lambda: _one_of(_TYPES[t] for t in ([demand] if type(demand) is str else demand)),
        "enum": lambda: ", ".join(map(_quoted, demand)),
        "not": lambda: str(demand.get("description", "is not allowed")),
        "pattern": lambda: _form(rule),
        "anyOf": lambda: _alternatives(demand, rule),
    }
    return wording.get(keyword, lambda: _quoted(demand))()


def _alternatives(branches: list[dict[str, Any]], rule: dict[str, Any]) -> str:
    fields = [field for branch in branches for field in branch.get("required", ())]
    return f"give at least one of {', '.join(fields)}" if fields else f"is not {_form(rule)}"


def _form(rule: dict[str, Any]) -> str:
    """The title names the form, and the description's first sentence explains it."""
    explanation = str(rule["description"]).partition(". ")[0].rstrip(".")
    return f"a valid {rule['title']}: {explanation}"


def _one_of(words: Iterable[str]) -> str:
    return " or ".join(words)


def _quoted(value: object) -> str:
    """Write a value as JSON, clipped."""
    short = value[: _MAX_QUOTE + 1] if isinstance(value, str) else value
    return _clipped(json.dumps(short, ensure_ascii=False), _MAX_QUOTE)


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _pointer(path: Iterable[str | int]) -> str:
    """Write a path as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


# --- hostile input -----------------------------------------------------------------------------


def _trimmed(value: object, depth: int = 0) -> object:
    """Cut an invalid instance down to what its first 32 errors need, and to valid Unicode."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_text(k): _trimmed(value[k], depth + 1) for k in _kept_fields(value)}
    if isinstance(value, list):
        return [_trimmed(item, depth + 1) for item in value[: MAX_PROBLEM_ERRORS + 1]]
    return _text(value) if isinstance(value, str) else value


def _kept_fields(fields: dict[str, Any]) -> Iterator[str]:
    yield from (field for field in fields if field in _known_fields())
    unknown = (field for field in fields if field not in _known_fields())
    yield from islice(unknown, MAX_PROBLEM_ERRORS)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()

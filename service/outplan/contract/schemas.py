"""Validate against the contract's JSON Schema files, and describe every error.

The files are the source of truth: they hold the rules, the units and most of an error's wording.
Patterns run on an engine without backtracking, so no text makes them slow.
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
# A valid message nests four deep; deeper parts are wrong in any case.
_MAX_DEPTH: Final = 8
_UNIT: Final = re.compile(r"\bin (milliseconds|seconds)\b")
_NOT_QUOTABLE: Final = ProblemError(
    pointer="", detail="holds text that is not valid Unicode, or is nested too deeply"
)


def list_schema_names() -> tuple[str, ...]:
    """List the schemas' names, sorted; ``definitions`` is one of them."""
    names = (file.name.partition(".json") for file in _folder().iterdir())
    return tuple(sorted(stem for stem, suffix, rest in names if suffix and not rest))


def read_schema_text(name: str) -> bytes:
    """Return a schema file's bytes. Raises KeyError if there is no such schema."""
    if name not in list_schema_names():
        raise KeyError(name)
    return (_folder() / f"{name}.json").read_bytes()


def is_valid(name: str, instance: object) -> bool:
    """Tell whether parsed JSON fits a schema. Raises KeyError if there is no such schema."""
    try:
        return _validator(name).is_valid(instance)
    except ValueError:  # lone surrogates, or nested past the validator's limit
        return False


def find_violations(name: str, instance: object) -> tuple[ProblemError, ...]:
    """List the validation errors, at most 32; none for a valid instance.

    A pointer leads to the wrong member itself, even if that is missing or unknown. ``instance``
    comes from a strict JSON parser, which refuses lone surrogates. Raises KeyError if there is no
    such schema.
    """
    if is_valid(name, instance):
        return ()
    errors = _validator(name).iter_errors(_trim(instance))
    broken = dict.fromkeys(pair for error in errors for pair in _list_errors(error))
    found = tuple(
        ProblemError(pointer=pointer, detail=_shorten(detail, _MAX_DETAIL))
        for pointer, detail in islice(broken, MAX_PROBLEM_ERRORS)
    )
    # The trimmed or replaced parts may have been the only wrong ones.
    return found or (_NOT_QUOTABLE,)


# --- the files -------------------------------------------------------------------------------


@cache
def _folder() -> Traversable:
    """Return the schemas' folder: inside the package in a wheel, beside it in a checkout."""
    package = resources.files("outplan")
    shipped = package / "schemas"
    return shipped if shipped.is_dir() else package / ".." / ".." / "schemas"


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    return {name: json.loads(read_schema_text(name)) for name in list_schema_names()}


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


# --- wording -----------------------------------------------------------------------------------

# By keyword: {value} is the wrong value, {limit} the schema's demand.
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


def _list_errors(error: jsonschema_rs.ValidationError) -> Iterator[tuple[str, str]]:
    """Turn a validator's error into pointers and details, one for each unknown field."""
    keyword, path = error.kind.name, error.instance_path
    if keyword == "required":
        yield _pointer([*path, error.kind.value]), "is required"
    elif keyword == "additionalProperties":
        yield from (_unknown(path, field) for field in error.kind.value)
    else:
        yield _pointer(path), _detail(error, keyword)


def _unknown(path: list[str | int], field: str) -> tuple[str, str]:
    # A pointer can't be clipped or escaped; it must fit into a header, and it is printed.
    if len(field) > _MAX_QUOTE or not field.isprintable():
        return _pointer(path), f"{_quote(field)} is not a known field"
    return _pointer([*path, field]), "is not a known field"


def _detail(error: jsonschema_rs.ValidationError, keyword: str) -> str:
    if keyword not in _WORDING:
        return error.message
    rule = {} if keyword == "falseSchema" else _rule(error)
    words = _WORDING[keyword].format(
        value=_quote(error.instance), limit=_limit(keyword, rule.get(keyword), rule)
    )
    unit = _UNIT.search(rule.get("description", ""))
    if unit and error.instance_path:
        return f"{words}; {error.instance_path[-1]} is in {unit[1]}"
    return words


def _rule(error: jsonschema_rs.ValidationError) -> dict[str, Any]:
    """Return the schema around the keyword of an error."""
    location = str(error.absolute_keyword_location).rpartition("/")[0]
    rule = _registry().resolver(_BASE).lookup(location).contents
    return rule if isinstance(rule, dict) else {}


def _limit(keyword: str, demand: Any, rule: dict[str, Any]) -> str:
    """Describe a keyword's demand; some schemas do so in their title or description."""
    wording: dict[str, Callable[[], str]] = {
        "type": lambda: _one_of(_TYPES[t] for t in ([demand] if type(demand) is str else demand)),
        "enum": lambda: ", ".join(map(_quote, demand)),
        "not": lambda: str(demand.get("description", "is not allowed")),
        "pattern": lambda: _form(rule),
        "anyOf": lambda: _alternatives(demand, rule),
    }
    return wording.get(keyword, lambda: _quote(demand))()


def _alternatives(branches: list[dict[str, Any]], rule: dict[str, Any]) -> str:
    fields = [field for branch in branches for field in branch.get("required", ())]
    return f"give at least one of {', '.join(fields)}" if fields else f"is not {_form(rule)}"


def _form(rule: dict[str, Any]) -> str:
    """Describe a form by its title and by the first sentence of its description."""
    explanation = str(rule["description"]).partition(". ")[0].rstrip(".")
    return f"a valid {rule['title']}: {explanation}"


def _one_of(words: Iterable[str]) -> str:
    return " or ".join(words)


def _quote(value: object) -> str:
    """Write a value as JSON, shortened, with escapes for what steers a terminal or a log."""
    short = value[: _MAX_QUOTE + 1] if isinstance(value, str) else value
    text = json.dumps(short, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return _shorten(text, _MAX_QUOTE)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _pointer(path: Iterable[str | int]) -> str:
    """Write a path as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


# --- hostile input -----------------------------------------------------------------------------


def _trim(value: object, depth: int = 0) -> object:
    """Reduce an invalid instance to the parts of its first 32 errors, in valid Unicode."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_text(k): _trim(value[k], depth + 1) for k in _kept_fields(value)}
    if isinstance(value, list):
        return [_trim(item, depth + 1) for item in value[: MAX_PROBLEM_ERRORS + 1]]
    return _text(value) if isinstance(value, str) else value


def _kept_fields(fields: dict[str, Any]) -> Iterator[str]:
    yield from (field for field in fields if field in _known_fields())
    unknown = (field for field in fields if field not in _known_fields())
    yield from islice(unknown, MAX_PROBLEM_ERRORS)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()

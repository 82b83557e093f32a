"""Say in one line what is wrong with data that breaks a model."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError

_MOST: Final = 8
_TEXTS: Final[dict[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of it",
    "json_invalid": "is not JSON",
    "json_type": "is not JSON",
    "string_type": "should be text",
    "string_pattern_mismatch": "has another form than the contract's",
    "string_too_short": "is shorter than the contract allows",
    "string_too_long": "is longer than the contract allows",
    "bool_type": "should be true or false",
    "dict_type": "should be an object",
    "model_type": "should be an object",
    "model_attributes_type": "should be an object",
    "list_type": "should be an array",
    "tuple_type": "should be an array",
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
}
_WHOLE_NUMBER: Final = "should be a whole number"


def describe_invalid(error: ValidationError) -> str:
    """Return the first errors as ``/data/name is missing; …``, without any value."""
    found = [
        "".join(f"/{part}" for part in item["loc"]) + f" {text}"
        for item, text in _list_errors(error)
    ]
    rest = len(found) - _MOST
    return "; ".join(found[:_MOST]).strip() + (f"; and {rest} more" if rest > 0 else "")


def _list_errors(error: ValidationError) -> Iterator[tuple[Any, str]]:
    for item in error.errors(include_url=False, include_input=False):
        kind, context = item["type"], item.get("ctx", {})
        if kind == "value_error":
            yield item, str(context["error"])
        elif kind == "literal_error":
            yield item, f"should be {context['expected']}"
        elif kind.startswith("int_"):
            yield item, _WHOLE_NUMBER
        else:
            yield item, _TEXTS.get(kind, "breaks the contract")

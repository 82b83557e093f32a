"""Compare two recordings, and show where they differ."""

import json
from collections.abc import Iterator
from typing import Any, Final

from tests.integration.golden.normal import Document

_BEFORE: Final = 60
_BEHIND: Final = 120
_LONGEST: Final = 300


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Yield a text for each place where two JSON values differ, in order."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _members(old, new, where)
    elif isinstance(old, list) and isinstance(new, list):
        if _is_named(old) and _is_named(new):
            yield from _members(_by_name(old), _by_name(new), where)
        else:
            yield from _items(old, new, where)
    elif type(old) is not type(new) or old != new:
        yield f"{where}\n{_contrast(old, new)}"


def sorted_headers(value: Any) -> Any:
    """Sort each header table by name, for brokers that do not keep the order."""
    if isinstance(value, dict):
        return {name: sorted_headers(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [sorted_headers(item) for item in value]
    return sorted(items, key=json.dumps) if items and all(map(_is_header, items)) else items


def _is_header(item: Any) -> bool:
    """Tell a header, ``[name, type, value]``: its type is one letter."""
    return (
        isinstance(item, list) and len(item) == 3 and str(item[1]).isalpha() and len(item[1]) == 1
    )


def _is_named(items: list[Any]) -> bool:
    """Tell a list of properties or headers, whose items begin with different names."""
    pairs = all(isinstance(item, list) and len(item) in (2, 3) for item in items)
    return bool(items) and pairs and len({str(item[0]) for item in items}) == len(items)


def _by_name(items: list[Any]) -> Document:
    return {str(item[0]): item[1] if len(item) == 2 else item[1:] for item in items}


def _members(old: Document, new: Document, where: str) -> Iterator[str]:
    if list(old) != list(new):
        yield f"{where}: names or their order\n{_contrast(list(old), list(new))}"
    for name in old:
        if name in new:
            yield from differences(old[name], new[name], f"{where}.{name}")


def _items(old: list[Any], new: list[Any], where: str) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{where}: {len(new)} instead of {len(old)}"
    for n, (before, now) in enumerate(zip(old, new, strict=False)):
        yield from differences(before, now, f"{where}[{_label(before, n)}]")
    longer, word = (old, "missing") if len(old) > len(new) else (new, "too many")
    for n in range(min(len(old), len(new)), len(longer)):
        text = json.dumps(longer[n], ensure_ascii=False)
        yield f"{where}[{n}]: {word}: {text[:_LONGEST]}"


def _label(item: Any, number: int) -> str:
    """Name an item of a list by what it is, where it says so."""
    if not isinstance(item, dict):
        return str(number)
    if item.get("commands"):
        first, *others = item["commands"]
        return f"{first!r} to {others[-1]!r}" if others else repr(first)
    if "properties" in item:
        properties = _by_name(item["properties"])
        name = properties.get("message_id", properties.get("correlation_id"))
        return f"{number}: {name!r}"
    return str(item.get("_id", number))


def _contrast(old: Any, new: Any) -> str:
    """Show two values from a little before the first place where they differ."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    pairs = enumerate(zip(*texts, strict=False))
    first = next((n for n, (a, b) in pairs if a != b), min(map(len, texts)))
    start = max(0, first - _BEFORE)
    lead = f"(from character {start}) " if start else ""
    return "\n".join(
        f"    {word} {lead}{text[start : first + _BEHIND]}"
        for word, text in zip(("recorded:", "now:     "), texts, strict=True)
    )

"""Check the rules on characters, one by one, in schemas, models and MongoDB's validators."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from pydantic import ValidationError

from outplan.contract import schemas
from outplan.contract.messages import COMMANDS
from outplan.mongodb.validators import OUTPLANS, build_validators
from tests.support.samples import SOURCE, create_body

LINE_BREAKS: Final = frozenset("\t\n\r")
REORDERING: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
# Every character that could matter, and some neighbours.
CHARACTERS: Final = [
    c
    for c in map(chr, range(0x11_0000))
    if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Zs"} or c in "aZ09 <>\"';:?é\u05d0中😀"
]
FIELDS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "/name": lambda text: {"name": text},
    "/detail": lambda text: {"detail": text},
    "/source/target": lambda text: {"source": {"type": "line", "target": text}},
    "/source/target_name": lambda text: {"source": {**SOURCE, "target_name": text}},
    "/source/name": lambda text: {"source": {**SOURCE, "name": text}},
    "/source/detail": lambda text: {"source": {**SOURCE, "detail": text}},
}


def fits_label(character: str) -> bool:
    is_control = unicodedata.category(character) in {"Cc", "Zl", "Zp"}
    return not is_control and unicodedata.bidirectional(character) not in REORDERING


def fits_prose(character: str) -> bool:
    return character in LINE_BREAKS or unicodedata.category(character) not in {"Cc", "Zl", "Zp"}


def model_accepts(body: dict[str, Any]) -> bool:
    try:
        COMMANDS["outplan_create"].model_validate(body)
    except ValidationError:
        return False
    return True


def validator_accepts(pointer: str, text: str) -> bool:
    """Apply the patterns of MongoDB's validator for a field; PCRE's ``\\z`` is Python's ``\\Z``."""
    [rules] = build_validators()[OUTPLANS]["$jsonSchema"]["allOf"]
    for step in pointer.split("/")[1:]:
        rules = rules["properties"][step]
    refused = rules.get("not", {}).get("pattern")
    return matches(rules["pattern"], text) and not (refused and matches(refused, text))


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern.replace(r"\z", r"\Z"), text) is not None


def judge(pointer: str, text: str) -> Iterator[bool]:
    body = create_body(**FIELDS[pointer](text))
    errors = schemas.find_violations("outplan_create", body)
    assert {error.pointer for error in errors} <= {pointer}
    yield not errors
    yield model_accepts(body)
    yield validator_accepts(pointer, text)


@pytest.mark.parametrize("pointer", FIELDS)
def test_each_character_is_allowed_or_not_in_all_three(pointer: str) -> None:
    fits = fits_prose if pointer.endswith("detail") else fits_label
    wrong = [
        (hex(ord(c)), found)
        for c in CHARACTERS
        if set(found := tuple(judge(pointer, f"a{c}b"))) != {fits(c)}
    ]
    assert wrong == []


@pytest.mark.parametrize("pointer", ["/name", "/source/target", "/source/target_name"])
def test_text_of_only_white_space_is_no_name(pointer: str) -> None:
    wrong = [
        (hex(ord(c)), found)
        for c in CHARACTERS
        if fits_label(c) and set(found := tuple(judge(pointer, c * 2))) != {not c.isspace()}
    ]
    assert wrong == []


@pytest.mark.parametrize("character", [c for c in CHARACTERS if c.isspace() or c in '<>"'])
def test_a_sip_target_has_nothing_that_would_end_it_in_a_header(character: str) -> None:
    for target in (f"a{character}b@c", f"a@b{character}", f"{character}a@b"):
        body = create_body(source={"type": "sip", "target": target})
        [first, *_] = schemas.find_violations("outplan_create", body)
        assert first.pointer == "/source/target"
        assert not model_accepts(body)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"name": "a\x1b[2Jb"}, '"a\\u001b[2Jb" contains a control character'),
        ({"name": "a\x9bb"}, '"a\\u009bb" contains a control character'),
        ({"name": "a\u2028b"}, '"a\\u2028b" contains a line separator'),
        (
            {"name": "a\u202eb"},
            '"a\\u202eb" contains a bidirectional embedding, override or isolate',
        ),
        ({"name": " \u3000"}, '" \\u3000" is only white space'),
        (
            {"detail": "a\x00b"},
            '"a\\u0000b" contains a control character other than a tab or a line break',
        ),
        (
            {"source": {"type": "sip", "target": "a b@c"}},
            '"a b@c" contains white space or one of < > ", which would end the address in a SIP'
            " header",
        ),
        ({"na\x1bme": 1}, '"na\\u001bme" is not a known field'),
    ],
)
def test_an_error_says_what_is_wrong_and_does_not_steer_its_reader(
    fields: dict[str, Any], detail: str
) -> None:
    found = schemas.find_violations("outplan_create", create_body(**fields))
    assert [error.detail for error in found] == [detail]

"""Check the pointers and texts of validation errors from ``outplan.contract.schemas``."""

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import pytest

from outplan.contract import schemas
from outplan.contract.fields import MAX_PROBLEM_ERRORS
from outplan.contract.messages import Update

VALID: Final[dict[str, Any]] = json.loads(schemas.read_schema_text("outplan_create"))["examples"][1]
ID: Final[str] = VALID["id"]


def find_errors(name: str, instance: object) -> list[tuple[str, str]]:
    return [(error.pointer, error.detail) for error in schemas.find_violations(name, instance)]


def create_errors(**changes: Any) -> list[tuple[str, str]]:
    return find_errors("outplan_create", {**VALID, **changes})


def target_errors(type_: str, target: str) -> list[tuple[str, str]]:
    return find_errors("address", {"type": type_, "target": target})


def nest_lists(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_valid_command_has_no_errors() -> None:
    assert schemas.find_violations("outplan_create", VALID) == ()
    assert schemas.is_valid("outplan_create", VALID)


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        (
            "dial_timeout",
            30,
            "30 is less than the minimum of 1000; dial_timeout is in milliseconds",
        ),
        (
            "dial_timeout",
            3600000,
            "3600000 is more than the maximum of 600000; dial_timeout is in milliseconds",
        ),
        ("dial_timeout", "30s", '"30s" is not an integer; dial_timeout is in milliseconds'),
        (
            "try_interval",
            60,
            "60 is too short: give 0 (retry at once) or at least 1000; "
            "try_interval is in milliseconds",
        ),
        ("try_interval", -1, "-1 is less than the minimum of 0; try_interval is in milliseconds"),
        ("max_try_count_0", 5.5, "5.5 is not an integer"),
        ("name", "", '"" is shorter than the minimum length of 1'),
        ("name", "a\nb", r'"a\nb" contains a control character'),
        ("detail", None, "null is not a string"),
        ("source", [], "[] is not an object"),
        ("colour", "red", "is not a known field"),
        (
            "id",
            "42",
            '"42" is not a valid UUID: 8-4-4-4-12 hexadecimal digits, not the nil UUID',
        ),
        (
            "customer_id",
            "00000000-0000-0000-0000-000000000000",
            '"00000000-0000-0000-0000-000000000000" is the nil UUID, which names nothing',
        ),
    ],
)
def test_a_broken_rule_is_reported_once_at_its_field(field: str, value: Any, detail: str) -> None:
    assert create_errors(**{field: value}) == [(f"/{field}", detail)]


@pytest.mark.parametrize(
    ("type_", "target", "form"),
    [
        ("tel", "15559876543", "E.164 number: + and 7 to 15 digits, without spaces or dashes"),
        ("sip", "alice", "SIP address: user@host, both parts non-empty"),
        ("agent", "2001", "UUID: 8-4-4-4-12 hexadecimal digits, not the nil UUID"),
    ],
)
def test_an_invalid_target_is_told_the_format_of_its_type(
    type_: str, target: str, form: str
) -> None:
    assert target_errors(type_, target) == [("/target", f'"{target}" is not a valid {form}')]


def test_an_unknown_address_type_lists_the_known_ones_and_skips_the_target() -> None:
    [(pointer, detail)] = target_errors("mobile", "")
    assert pointer == "/type"
    assert detail.startswith('"mobile" is not one of "tel", "whatsapp", "email", ')


def test_a_missing_field_is_reported_at_its_own_pointer() -> None:
    assert find_errors("outplan_create", {}) == [
        ("/customer_id", "is required"),
        ("/name", "is required"),
        ("/source", "is required"),
    ]


def test_every_unknown_field_is_reported() -> None:
    found = create_errors(colour="red", size=3)
    assert found == [("/colour", "is not a known field"), ("/size", "is not a known field")]


def test_broken_rules_are_reported_at_every_depth() -> None:
    found = create_errors(dial_timeout=30, name=1, source={"type": "tel", "target": "1", "x": 1})
    assert {pointer for pointer, _ in found} == {
        "/dial_timeout",
        "/name",
        "/source/target",
        "/source/x",
    }


def test_an_empty_update_lists_the_changeable_fields() -> None:
    detail = f"give at least one of {', '.join(Update.CHANGEABLE)}"
    assert find_errors("outplan_update", {"id": ID}) == [("", detail)]


def test_a_body_that_is_not_an_object_is_reported_at_the_root() -> None:
    assert find_errors("outplan_delete", ID) == [("", f'"{ID}" is not an object')]


def test_a_pointer_escapes_slash_and_tilde() -> None:
    assert create_errors(**{"a/b~c": 1, "~1": 2}) == [
        ("/a~1b~0c", "is not a known field"),
        ("/~01", "is not a known field"),
    ]


def test_a_pointer_includes_list_indexes() -> None:
    problem = json.loads(schemas.read_schema_text("problem"))["examples"][0]
    problem["errors"] = [{"pointer": "", "detail": "x"}, {"pointer": "no slash", "detail": 1}]
    assert [pointer for pointer, _ in find_errors("problem", problem)] == [
        "/errors/1/pointer",
        "/errors/1/detail",
    ]


def test_a_field_of_another_reply_status_is_reported_at_that_field() -> None:
    reply = json.loads(schemas.read_schema_text("reply"))["examples"][1]
    assert find_errors("reply", {**reply, "version": 2}) == [("/version", "does not belong here")]


def test_a_long_value_is_truncated() -> None:
    [(pointer, detail)] = create_errors(name="n" * 5000)
    assert pointer == "/name"
    assert detail.startswith('"nnn')
    assert detail.endswith("… is longer than the maximum length of 255")
    assert len(detail) < 150


@pytest.mark.parametrize("value", ["\x00" * 300, "😀" * 300, list(range(999)), {"a": "x" * 999}])
def test_no_detail_is_longer_than_300_characters(value: Any) -> None:
    body = dict.fromkeys(VALID, value)
    found = find_errors("outplan_create", body)
    assert {pointer for pointer, _ in found} >= {"/id", "/dial_timeout", "/max_try_count_4"}
    assert max(len(detail) for _, detail in found) <= 300


def test_a_field_name_too_long_for_a_pointer_is_reported_at_its_object() -> None:
    [(pointer, detail)] = find_errors("outplan_delete", {"id": ID, "k" * 100_000: 1})
    assert pointer == ""
    assert detail.startswith('"kkk')
    assert detail.endswith("… is not a known field")


def test_no_error_is_reported_twice() -> None:
    found = find_errors("address", {"type": "agent", "target": 5, "name": 7})
    assert sorted(found) == [("/name", "7 is not a string"), ("/target", "5 is not a string")]


def test_at_most_32_errors_are_reported() -> None:
    assert len(create_errors(**{f"field_{n}": n for n in range(100)})) == MAX_PROBLEM_ERRORS


def test_missing_fields_come_first_when_errors_are_cut_off() -> None:
    found = find_errors("outplan_create", {f"field_{n}": n for n in range(100)})
    assert found[:3] == [(f"/{f}", "is required") for f in ("customer_id", "name", "source")]
    assert len(found) == MAX_PROBLEM_ERRORS


@pytest.mark.parametrize(
    "body",
    [
        {f"field_{n}": n for n in range(30_000)},
        {**VALID, "source": {f"field_{n}": [n] for n in range(30_000)}},
        {**VALID, "source": [[n] for n in range(50_000)]},
        {**VALID, "source": {"type": "email", "target": "a@" + "a." * 120_000}},
        {**VALID, "source": {"type": "email", "target": "a" * 250_000}},
        {**VALID, "id": "a" * 250_000, "name": "\x07" * 250_000},
    ],
    ids=["fields", "nested fields", "list", "labels", "local part", "text"],
)
def test_a_hostile_body_is_validated_quickly(body: dict[str, Any]) -> None:
    schemas.find_violations("outplan_create", {})
    fastest = 1.0
    for _ in range(5):
        start = perf_counter()
        found = schemas.find_violations("outplan_create", body)
        fastest = min(fastest, perf_counter() - start)
        assert 0 < len(found) <= MAX_PROBLEM_ERRORS
    assert fastest < 0.1


def test_a_name_that_is_not_unicode_is_an_error() -> None:
    detail = "holds text that is not valid Unicode, or is nested too deeply"
    assert not schemas.is_valid("outplan_create", {**VALID, "name": "\ud800"})
    assert create_errors(name="\ud800") == [("", detail)]


def test_an_error_about_invalid_unicode_can_be_serialized() -> None:
    found = schemas.find_violations("outplan_create", {**VALID, "\udfff": 1, "id": "\ud800"})
    assert found
    for error in found:
        error.model_dump_json()


@pytest.mark.parametrize("depth", [100, 900])
def test_deep_nesting_is_reported_at_its_field(depth: int) -> None:
    [(pointer, detail)] = create_errors(detail=nest_lists(depth))
    assert pointer == "/detail"
    assert detail.endswith("is not a string")


def test_a_valid_command_is_validated_in_microseconds() -> None:
    rounds = 2000
    fastest = 1.0
    for _ in range(7):
        start = perf_counter()
        for _ in range(rounds):
            schemas.find_violations("outplan_create", VALID)
        fastest = min(fastest, (perf_counter() - start) / rounds)
    assert fastest < 20e-6  # about 2 µs; compiling the validator each time takes 1000


def test_schema_names_match_the_files() -> None:
    assert "outplan_create" in schemas.list_schema_names()
    assert "definitions" in schemas.list_schema_names()
    assert list(schemas.list_schema_names()) == sorted(schemas.list_schema_names())
    assert all(
        "$schema" in json.loads(schemas.read_schema_text(n)) for n in schemas.list_schema_names()
    )


@pytest.mark.parametrize("name", ["no_such_schema", "../README", ""])
def test_an_unknown_schema_name_raises_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        schemas.read_schema_text(name)
    with pytest.raises(KeyError):
        schemas.find_violations(name, {})


def test_import_reads_and_compiles_nothing() -> None:
    code = (
        "from outplan.contract import schemas\n"
        "caches = (schemas._folder, schemas._schemas, schemas._registry, schemas._validator)\n"
        "print(sum(cache.cache_info().currsize for cache in caches))\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert process.stdout == "0\n"

"""What ``contract`` says of an instance that breaks the rules: where, and in which words."""

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

VALID: Final[dict[str, Any]] = json.loads(schemas.schema_text("outplan_create"))["examples"][1]
ID: Final[str] = VALID["id"]


def errors(name: str, instance: object) -> list[tuple[str, str]]:
    return [(error.pointer, error.detail) for error in schemas.violations(name, instance)]


def of_create(**changes: Any) -> list[tuple[str, str]]:
    return errors("outplan_create", {**VALID, **changes})


def of_target(type_: str, target: str) -> list[tuple[str, str]]:
    return errors("address", {"type": type_, "target": target})


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_valid_command_breaks_no_rule() -> None:
    assert schemas.violations("outplan_create", VALID) == ()
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
def test_a_broken_rule_is_told_once_at_its_field(field: str, value: Any, detail: str) -> None:
    assert of_create(**{field: value}) == [(f"/{field}", detail)]


@pytest.mark.parametrize(
    ("type_", "target", "form"),
    [
        ("tel", "15559876543", "E.164 number: + and 7 to 15 digits, without spaces or dashes"),
        ("sip", "alice", "SIP address: user@host, both parts non-empty"),
        ("agent", "2001", "UUID: 8-4-4-4-12 hexadecimal digits, not the nil UUID"),
    ],
)
def test_a_target_is_told_the_form_for_its_type(type_: str, target: str, form: str) -> None:
    assert of_target(type_, target) == [("/target", f'"{target}" is not a valid {form}')]


def test_an_unknown_type_is_told_the_known_ones_and_its_target_is_left_alone() -> None:
    [(pointer, detail)] = of_target("mobile", "")
    assert pointer == "/type"
    assert detail.startswith('"mobile" is not one of "tel", "whatsapp", "email", ')


def test_a_missing_field_is_told_at_its_own_pointer() -> None:
    assert errors("outplan_create", {}) == [
        ("/customer_id", "is required"),
        ("/name", "is required"),
        ("/source", "is required"),
    ]


def test_every_unknown_field_is_told() -> None:
    found = of_create(colour="red", size=3)
    assert found == [("/colour", "is not a known field"), ("/size", "is not a known field")]


def test_every_broken_rule_is_told_however_deep() -> None:
    found = of_create(dial_timeout=30, name=1, source={"type": "tel", "target": "1", "x": 1})
    assert {pointer for pointer, _ in found} == {
        "/dial_timeout",
        "/name",
        "/source/target",
        "/source/x",
    }


def test_an_update_that_changes_nothing_is_told_what_it_could_change() -> None:
    detail = f"give at least one of {', '.join(Update.CHANGEABLE)}"
    assert errors("outplan_update", {"id": ID}) == [("", detail)]


def test_a_body_that_is_no_object_is_told_at_the_root() -> None:
    assert errors("outplan_delete", ID) == [("", f'"{ID}" is not an object')]


def test_a_pointer_escapes_slash_and_tilde() -> None:
    assert of_create(**{"a/b~c": 1, "~1": 2}) == [
        ("/a~1b~0c", "is not a known field"),
        ("/~01", "is not a known field"),
    ]


def test_a_pointer_counts_the_items_of_a_list() -> None:
    problem = json.loads(schemas.schema_text("problem"))["examples"][0]
    problem["errors"] = [{"pointer": "", "detail": "x"}, {"pointer": "no slash", "detail": 1}]
    assert [pointer for pointer, _ in errors("problem", problem)] == [
        "/errors/1/pointer",
        "/errors/1/detail",
    ]


def test_what_does_not_belong_to_a_status_is_told_there() -> None:
    reply = json.loads(schemas.schema_text("reply"))["examples"][1]
    assert errors("reply", {**reply, "version": 2}) == [("/version", "does not belong here")]


def test_a_long_value_is_quoted_in_part() -> None:
    [(pointer, detail)] = of_create(name="n" * 5000)
    assert pointer == "/name"
    assert detail.startswith('"nnn')
    assert detail.endswith("… is longer than the maximum length of 255")
    assert len(detail) < 150


@pytest.mark.parametrize("value", ["\x00" * 300, "😀" * 300, list(range(999)), {"a": "x" * 999}])
def test_no_detail_is_longer_than_300_characters(value: Any) -> None:
    body = dict.fromkeys(VALID, value)
    found = errors("outplan_create", body)
    assert {pointer for pointer, _ in found} >= {"/id", "/dial_timeout", "/max_try_count_4"}
    assert max(len(detail) for _, detail in found) <= 300


def test_a_field_name_too_long_for_a_pointer_is_told_at_its_object() -> None:
    [(pointer, detail)] = errors("outplan_delete", {"id": ID, "k" * 100_000: 1})
    assert pointer == ""
    assert detail.startswith('"kkk')
    assert detail.endswith("… is not a known field")


def test_nothing_is_told_twice() -> None:
    found = errors("address", {"type": "agent", "target": 5, "name": 7})
    assert sorted(found) == [("/name", "7 is not a string"), ("/target", "5 is not a string")]


def test_at_most_32_errors_are_told() -> None:
    assert len(of_create(**{f"field_{n}": n for n in range(100)})) == MAX_PROBLEM_ERRORS


def test_no_more_than_needed_is_cut_from_a_hostile_body() -> None:
    found = errors("outplan_create", {f"field_{n}": n for n in range(100)})
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
def test_a_hostile_body_costs_little(body: dict[str, Any]) -> None:
    schemas.violations("outplan_create", {})
    fastest = 1.0
    for _ in range(5):
        start = perf_counter()
        found = schemas.violations("outplan_create", body)
        fastest = min(fastest, perf_counter() - start)
        assert 0 < len(found) <= MAX_PROBLEM_ERRORS
    assert fastest < 0.1


def test_a_name_that_is_not_unicode_is_refused() -> None:
    detail = "holds text that is not valid Unicode, or is nested too deeply"
    assert not schemas.is_valid("outplan_create", {**VALID, "name": "\ud800"})
    assert of_create(name="\ud800") == [("", detail)]


def test_an_error_about_text_that_is_not_unicode_can_be_sent() -> None:
    found = schemas.violations("outplan_create", {**VALID, "\udfff": 1, "id": "\ud800"})
    assert found
    for error in found:
        error.model_dump_json()


@pytest.mark.parametrize("depth", [100, 900])
def test_deep_nesting_is_refused_at_its_field(depth: int) -> None:
    [(pointer, detail)] = of_create(detail=nested(depth))
    assert pointer == "/detail"
    assert detail.endswith("is not a string")


def test_a_valid_command_is_judged_in_microseconds() -> None:
    rounds = 2000
    fastest = 1.0
    for _ in range(7):
        start = perf_counter()
        for _ in range(rounds):
            schemas.violations("outplan_create", VALID)
        fastest = min(fastest, (perf_counter() - start) / rounds)
    assert fastest < 20e-6  # about 2 µs; a validator compiled anew each time takes 1000


def test_the_names_are_those_of_the_files() -> None:
    assert "outplan_create" in schemas.schema_names()
    assert "definitions" in schemas.schema_names()
    assert list(schemas.schema_names()) == sorted(schemas.schema_names())
    assert all("$schema" in json.loads(schemas.schema_text(n)) for n in schemas.schema_names())


@pytest.mark.parametrize("name", ["no_such_schema", "../README", ""])
def test_an_unknown_name_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError):
        schemas.schema_text(name)
    with pytest.raises(KeyError):
        schemas.violations(name, {})


def test_nothing_is_read_or_compiled_at_import() -> None:
    code = (
        "from outplan.contract import schemas\n"
        "caches = (schemas._folder, schemas._schemas, schemas._registry, schemas._validator)\n"
        "print(sum(cache.cache_info().currsize for cache in caches))\n"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "0\n"

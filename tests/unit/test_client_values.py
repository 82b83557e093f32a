"""Test that the client takes values as Python programs have them, and refuses others in one way."""

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from numbers import Integral
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outplan.client.errors import CommandRejected, InvalidCommand, TooLarge, UnknownCommand
from outplan.client.requests import Request
from outplan.contract.messages import Address, CommandName
from tests.support.samples import ID, create_body


class Markup(str):
    """Like markupsafe's: text of another type, which converts to something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "escaped"


class Color(str, Enum):  # noqa: UP042 - str() of a StrEnum is its value, of this one it is not.
    EVENINGS = "evenings"


class Names(StrEnum):
    EVENINGS = "evenings"


class Times(IntEnum):
    HALF_A_MINUTE = 30_000


class Number(int):
    """A subclass of int that converts to something else."""

    def __index__(self) -> int:
        return 7


class Scalar:
    """Like numpy's integers: no subclass of int."""

    def __index__(self) -> int:
        return 30_000


class Ticks:
    """Like numpy's timedelta64: registered as an integer, and in a unit of its own."""

    def __float__(self) -> float:
        return 30_000.0

    def __int__(self) -> int:
        return 30_000


Integral.register(Ticks)


class Proxy:
    """Like a lazy object, which says that it is of another class."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str


class Hostile(Mapping[str, object]):
    """A mapping that fails when it is read."""

    def __getitem__(self, key: str) -> object:
        raise OSError("no database")

    def __iter__(self) -> Iterator[str]:
        raise OSError("no database")

    def __len__(self) -> int:
        return 1


class BrokenUuid(UUID):
    def __repr__(self) -> str:
        return "BrokenUuid"

    def __str__(self) -> str:
        raise OSError("no database")


def encode(**fields: Any) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(Request.update(ID, **fields).encode()))


def list_errors(**fields: Any) -> dict[str, str]:
    """Return the errors of an update, by JSON Pointer: the first of each."""
    with pytest.raises(InvalidCommand) as invalid:
        Request.update(ID, **fields).encode()
    return {error.pointer: error.detail for error in reversed(invalid.value.errors)}


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def nest_in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def multiply(levels: int) -> list[Any]:
    """Build a small value that takes 10 to the power of ``levels`` values to write."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize("name", [Markup("evenings"), Color.EVENINGS, Names.EVENINGS])
def test_text_of_any_type_is_taken_as_its_characters(name: str) -> None:
    assert encode(name=name)["name"] == "evenings"


@pytest.mark.parametrize(
    "value",
    [
        30_000, Times.HALF_A_MINUTE, Number(30_000), Scalar(), 30_000.0, Decimal("30000.00"),
        Decimal("3E+4"), Fraction(60_000, 2), timedelta(seconds=30),
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["dial_timeout", "try_interval"])
def test_whole_numbers_of_any_type_and_durations_are_taken(field: str, value: Any) -> None:
    assert encode(**{field: value})[field] == 30_000


def test_numbers_and_text_of_numpy_are_taken() -> None:
    numpy = pytest.importorskip("numpy")
    for type_ in (numpy.int16, numpy.uint64, numpy.float32, numpy.float64, numpy.longdouble):
        assert encode(dial_timeout=type_(30_000)) == {"id": ID, "dial_timeout": 30_000}
    assert encode(name=numpy.str_("evenings"), expected_version=numpy.array(3)) == {
        "id": ID, "name": "evenings", "expected_version": 3,
    }  # fmt: skip
    for refused in (numpy.timedelta64(30_000, "s"), numpy.bool_(True), numpy.array([30_000])):
        assert list(list_errors(dial_timeout=refused)) == ["/dial_timeout"]


@pytest.mark.parametrize(
    "source",
    [
        OrderedDict(type="agent", target=UUID(ID)),
        MappingProxyType({Markup("type"): Markup("agent"), Markup("target"): ID}),
    ],
)
def test_mappings_and_uuids_inside_of_them_are_taken(source: Any) -> None:
    assert encode(source=source)["source"] == {"type": "agent", "target": ID}


def test_ids_are_plain_text_everywhere() -> None:
    request = Request(cast(CommandName, Markup("outplan_delete")), {"id": Markup(ID.upper())})
    assert (request.outplan_id, request.routing_key) == (ID, "outplan_delete.9e")
    id_ = uuid4()
    requests = [
        Request("outplan_delete", {"id": ID}, cast(str, id_)),
        Request.delete(ID, message_id=Markup(id_)),
    ]
    assert [type(request.message_id) for request in requests] == [str, str]
    assert requests[0].message_id == str(id_)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (True, "true is not an integer"),
        (Decimal("0.5"), "0.5 is not an integer"),
        (Decimal("30000.00000000000000000000001"), "has more digits than a number in JSON"),
        (Decimal("1e400"), "inf has no form in JSON"),
        (Fraction(1, 3), "has more digits than a number in JSON"),
        (math.nan, "nan has no form in JSON"),
        (Decimal("-Infinity"), "-inf has no form in JSON"),
        (Decimal("sNaN"), "cannot be read"),
        (10**400, "more than 300 digits"),
        (10**5_000, "more than 300 digits"),
        (timedelta(seconds=30, microseconds=1), "is not a whole number of milliseconds"),
        (Ticks(), "Ticks cannot be read: it raises TypeError"),
        (30_000 + 0j, "complex has no form in JSON"),
        (b"30000", "bytes has no form in JSON"),
        ({30_000}, "set has no form in JSON"),
        (datetime.now(UTC), "datetime has no form in JSON"),
        (SimpleNamespace(), "SimpleNamespace has no form in JSON"),
        (Proxy(), "Proxy has no form in JSON"),
        (Hostile(), "Hostile cannot be read: it raises OSError"),
        (nest(100_000), "is nested more than 32 deep"),
        (nest_in_itself(), "contains itself"),
        ({7: "x"}, "has a key that is not text but int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_an_obvious_meaning_has_an_error_with_its_pointer(
    value: Any, detail: str
) -> None:
    errors = list_errors(dial_timeout=value)
    assert all(pointer.startswith("/dial_timeout") for pointer in errors)
    assert any(detail in error for error in errors.values())


def test_a_duration_is_taken_by_fields_in_milliseconds_only() -> None:
    short = timedelta(seconds=2)
    errors = list_errors(max_try_count_0=short, source={"type": "tel", "dial_timeout": short})
    assert errors["/max_try_count_0"] == "only dial_timeout and try_interval can be a timedelta"
    assert "can be a timedelta" in errors["/source/dial_timeout"]


def test_every_error_is_reported_at_once_each_at_its_value() -> None:
    source = {"type": "tel", "target": b"+15559876543", "target_name": "\ud800"}
    errors = list_errors(name="", source=source, dial_timeout=30, detail=object(), **{"x/~": 1})
    assert errors.keys() == {
        "/name", "/source/target", "/source/target_name", "/dial_timeout", "/detail", "/x~1~0",
    }  # fmt: skip
    assert errors["/source/target_name"] == "holds text that is not valid Unicode"


def test_a_key_that_cannot_be_printed_is_not_in_a_pointer() -> None:
    for key in ("\x1b[2J", "x" * 101):
        assert list(list_errors(source={key: object()})) == ["/source"]
    assert list_errors(source={"\ud800": 1}) == {"/source": "holds text that is not valid Unicode"}


def test_a_small_value_that_is_large_in_json_is_refused_at_once() -> None:
    with pytest.raises(InvalidCommand, match="has more than 10000 values"):
        Request.update(ID, detail=cast(str, multiply(12))).encode()


@pytest.mark.parametrize("body", [None, 7, "text", [], [("id", ID)], Hostile(), {7: ID}])
def test_a_body_that_is_no_mapping_of_fields_is_invalid(body: Any) -> None:
    request = Request("outplan_delete", body)
    assert (request.outplan_id, request.routing_key) == (None, "outplan_delete")
    for validate in (True, False):
        with pytest.raises(InvalidCommand) as invalid:
            request.encode(validate=validate)
        assert [error.pointer for error in invalid.value.errors] == [""]


@pytest.mark.parametrize("name", [None, 7, [], "", "x" * 256, "\ud800", Color])
def test_a_name_that_amqp_does_not_carry_is_an_unknown_command(name: Any) -> None:
    for validate in (True, False):
        with pytest.raises(UnknownCommand):
            Request(name, {"id": ID}).encode(validate=validate)


@pytest.mark.parametrize(
    "message_id",
    ["", "x" * 256, "\N{BLACK STAR}" * 86, "\ud800", 7, b"c-1", BrokenUuid(ID), object()],
)
def test_a_message_id_that_amqp_does_not_carry_is_invalid(message_id: Any) -> None:
    with pytest.raises(InvalidCommand, match="1 to 255 bytes of UTF-8") as invalid:
        Request.delete(ID, message_id=message_id)
    assert [error.pointer for error in invalid.value.errors] == ["/message_id"]
    assert invalid.value.problem.command_id is None


def test_an_id_that_cannot_be_read_is_invalid() -> None:
    request = Request.delete(BrokenUuid(ID))
    assert (request.outplan_id, request.routing_key) == (None, "outplan_delete")
    with pytest.raises(InvalidCommand) as invalid:
        request.encode()
    assert [error.pointer for error in invalid.value.errors] == ["/id"]


ODD = st.sampled_from(
    [
        Markup("\ud800"), Color.EVENINGS, Times.HALF_A_MINUTE, Number(1), Scalar(), Ticks(),
        Proxy(), Hostile(), BrokenUuid(ID), object(), object, Decimal("sNaN"), Decimal("1e999999"),
        range(3), iter("x"), NotImplemented, len, Address(type="tel", target="+15559876543"),
        SimpleNamespace(id=ID), {ID}, UUID(ID),
    ]
)  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.fractions()
    | st.complex_numbers() | st.binary() | st.uuids() | st.timedeltas() | st.datetimes() | ODD
    | st.text(st.characters(exclude_categories=[])) | st.from_type(type)
)  # fmt: skip
KEYS = (
    st.sampled_from([*create_body(), Markup("name"), Names.EVENINGS, Scalar(), UUID(ID), (), None])
    | st.text(st.characters(exclude_categories=[]))
    | st.integers()
    | st.binary()
)
VALUES = st.recursive(
    LEAVES,
    lambda parts: st.lists(parts) | st.tuples(parts) | st.dictionaries(KEYS, parts),
    max_leaves=10,
)


@given(
    name=st.sampled_from(["outplan_create", "outplan_update"]) | VALUES,
    body=VALUES | st.dictionaries(st.sampled_from([*create_body(), "colour"]), VALUES),
    message_id=st.none() | VALUES,
    validate=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_value_raises_anything_but_a_rejection(
    name: Any, body: Any, message_id: Any, validate: bool
) -> None:
    try:
        request = Request(name, body, message_id)
        content = request.encode(validate=validate)
    except (InvalidCommand, UnknownCommand, TooLarge) as rejected:
        check_printable(rejected)
    else:
        assert isinstance(json.loads(content.decode(errors="surrogatepass")), dict)
        assert request.routing_key.encode()


@given(field=st.sampled_from(list(create_body())), value=VALUES)
@settings(max_examples=200, deadline=None)
def test_one_wrong_value_among_valid_ones_is_pointed_at(field: str, value: Any) -> None:
    try:
        Request("outplan_create", {**create_body(), field: value}).encode()
    except (InvalidCommand, TooLarge) as rejected:
        check_printable(rejected)
        pointers = [error.pointer for error in rejected.errors]
        wrong = [pointer for pointer in pointers if not pointer.startswith(f"/{field}")]
    else:
        wrong = []
    assert wrong in ([], [""])


def check_printable(rejected: CommandRejected) -> None:
    assert str(rejected).encode()
    assert rejected.problem.model_dump_json()
    assert rejected.code != "invalid_command" or 1 <= len(rejected.errors) <= 32

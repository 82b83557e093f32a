"""Hostile input: one clear outcome each, and neighbours in the same batch that notice nothing.

All of it is in the queue before the worker starts, so that it is taken in batches.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from outplan.contract.amqp import Delivery
from outplan.contract.fields import MAX_BODY_BYTES, NIL_UUID
from outplan.contract.topology import topology
from outplan.rabbitmq.frames import WireProperties
from outplan.rabbitmq.session import open_session
from outplan.testing.servers import Servers
from tests.support.deployment import open_deployment
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, TEL, Document, World, create_body, open_world


def create(**fields: Any) -> bytes:
    return json.dumps(create_body(**fields)).encode()


def padded(size: int) -> bytes:
    body = create(name="exact")
    return body + b" " * (size - len(body))


@dataclass(frozen=True)
class Case:
    """One message: raw bytes and properties; ``expected`` is "accepted" or a problem's code."""

    name: str
    expected: str
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    routing_key: str = "outplan_create"


def case(name: str, expected: str, body: bytes, key: str = "outplan_create", **props: Any) -> Case:
    return Case(name, expected, body, props, key)


VALUE = create(dial_timeout=-1)
ODD_HEADERS: dict[str, Any] = {
    "outplan_id": ["not", {"text": 1}],
    "traceparent": 7,
    "tracestate": {"a": None},
    "decimal": Decimal("3.25"),
    "time": datetime(1970, 1, 1, tzinfo=UTC),
    "nested": {"a": [True, None, 2**40, {"b": b"bytes".hex()}]},
    "": "no name",
    "ключ": "значение",
    "x-delivery-count": 99,
    "x-problem": "mine",
}
CREATE_FIELDS = [
    "id", "customer_id", "name", "detail", "source", "dial_timeout", "try_interval",
    *[f"max_try_count_{n}" for n in range(5)],
]  # fmt: skip

CASES = [
    case("an empty body", "invalid_json", b""),
    case("white space", "invalid_json", b" \n"),
    case("not UTF-8", "invalid_json", create().replace(b"test", b"t\xffst")),
    case("UTF-16", "invalid_json", create().decode().encode("utf-16")),
    case("a byte order mark", "invalid_json", b"\xef\xbb\xbf" + create()),
    case("NaN", "invalid_json", VALUE.replace(b"-1", b"NaN")),
    case("Infinity", "invalid_json", VALUE.replace(b"-1", b"-Infinity")),
    case("a number past all floats", "invalid_json", VALUE.replace(b"-1", b"1e999")),
    case("ten thousand levels", "invalid_json", b"[" * 10_000 + b"]" * 10_000),
    case("ten thousand objects", "invalid_json", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    case("a lone surrogate", "invalid_json", create().replace(b"test", b"\\ud800")),
    case("a surrogate in UTF-8", "invalid_json", create().replace(b"test", b"\xed\xa0\x80")),
    case("an array", "invalid_json", b"[1]"),
    case("null", "invalid_json", b"null"),
    case("two objects", "invalid_json", b"{} {}"),
    case("a trailing comma", "invalid_json", b'{"id": "7",}'),
    case("gzip", "invalid_json", gzip.compress(create()), content_encoding="gzip"),
    case("gzip unsaid", "invalid_json", gzip.compress(create())),
    case("an unread encoding", "invalid_json", create(), content_encoding="utf-16"),
    case("identity", "accepted", create(), content_encoding="identity"),
    case("utf-8", "accepted", create(), content_encoding="UTF-8"),
    case("64 bits and one", "invalid_command", VALUE.replace(b"-1", b"18446744073709551616")),
    case("minus 64 bits", "invalid_command", VALUE.replace(b"-1", b"-9223372036854775809")),
    case("a huge float", "invalid_command", VALUE.replace(b"-1", b"1e300")),
    case("a fraction", "invalid_command", VALUE.replace(b"-1", b"30000.5")),
    case("a whole float", "accepted", VALUE.replace(b"-1", b"30000.0")),
    case("an exponent", "accepted", VALUE.replace(b"-1", b"3e4")),
    case("true for an integer", "invalid_command", VALUE.replace(b"-1", b"true")),
    case("text for an integer", "invalid_command", VALUE.replace(b"-1", b'"30000"')),
    case("seconds", "invalid_command", VALUE.replace(b"-1", b"30")),
    case("an upper-case UUID", "accepted", create(id=str(uuid4()).upper())),
    case("the nil UUID", "invalid_command", create(id=NIL_UUID)),
    case("the nil customer", "invalid_command", create(customer_id=NIL_UUID)),
    case("a UUID in braces", "invalid_command", create(id=f"{{{uuid4()}}}")),
    case("a UUID and a line break", "invalid_command", create(id=f"{uuid4()}\n")),
    *[case(f"null for {f}", "invalid_command", create(**{f: None})) for f in CREATE_FIELDS],
    *[case(f"a list for {f}", "invalid_command", create(**{f: []})) for f in CREATE_FIELDS],
    case("an unknown field", "invalid_command", create(colour="red")),
    case("$where", "invalid_command", create(**{"$where": "sleep(1000)"})),
    case("an operator for a value", "invalid_command", create(name={"$ne": ""})),
    case("an operator for an id", "invalid_command", b'{"id": {"$gt": ""}}', "outplan_delete"),
    case("a dotted key", "invalid_command", create(**{"source.type": "tel"})),
    case("an unknown address field", "invalid_command", create(source={**TEL, "$set": 1})),
    case("a NUL in the name", "invalid_command", create(name="a\0b")),
    case("an escape in the name", "invalid_command", create(name="\x1b[2J")),
    case("a NUL in the detail", "accepted", create(detail="a\0b")),
    case("a NUL in a field's name", "invalid_command", create(**{"na\0me": 1})),
    case("a name in emoji", "accepted", create(name="📞" * 255)),
    case("a name too long", "invalid_command", create(name="x" * 256)),
    case("a detail too long", "invalid_command", create(detail="x" * 65_536)),
    case("ten thousand fields", "invalid_command", create(**{f"f{n}": n for n in range(10_000)})),
    case("a body of the limit", "accepted", padded(MAX_BODY_BYTES)),
    case("a byte over the limit", "too_large", padded(MAX_BODY_BYTES + 1)),
    case("a megabyte", "too_large", b"x" * 1_000_000),
    case("a message_id of 255 bytes", "accepted", create(), message_id="m" * 255),
    case("a message_id in Greek", "accepted", create(), message_id="μ" * 127),
    case("an odd message_id", "accepted", create(), message_id="$where.a\0b\n"),
    case("a message_id that is no text", "missing_message_id", create(), message_id=b"\xff\xfe"),
    case("an empty message_id", "missing_message_id", create(), message_id=""),
    case("a type that is no text", "unknown_command", create(), type=b"\xc3\x28"),
    case("a routing key that is no text", "unknown_command", create(), b"\xc3\x28"),  # type: ignore[arg-type]
    case("odd headers", "accepted", create(), headers=ODD_HEADERS),
    case("odd headers, refused", "invalid_command", b"{}", headers=ODD_HEADERS),
    case("a header that fills a frame", "invalid_command", b"{}", headers={"h": "x" * 130_500}),
    case("a timestamp in 1970", "accepted", create(), timestamp=0),
    case("a timestamp in milliseconds", "accepted", create(), timestamp=1_764_000_000_000),
    case("a timestamp past all years", "accepted", create(), timestamp=2**63 - 1),
    case("a timestamp past all years, refused", "invalid_command", b"{}", timestamp=2**63 - 1),
    case("an app_id that is no text", "invalid_command", b"{}", app_id=b"\xff"),
    case("a priority of 255", "accepted", create(), priority=255),
]  # fmt: skip


@pytest.fixture(scope="module")
async def world(servers: Servers) -> AsyncIterator[World]:
    """A witness to the whole of it: each case between two good neighbours, then the worker."""
    async with (
        open_deployment(servers) as deployment,
        open_world(deployment, watch_rejected=False) as found,
    ):
        await found.send("outplan_create", create_body(), message_id="first")
        for n, each in enumerate(CASES):
            await found.send(
                "outplan_create", create_body(name=each.name), message_id=f"before {n}"
            )
            properties = {"message_id": f"case {n}", "delivery_mode": 2, **each.properties}
            properties["correlation_id"] = f"case {n}"
            await found.send_raw(each.routing_key, each.body, **properties)
        await found.send("outplan_create", create_body(), message_id="last")
        async with run_worker(deployment):
            await found.wait_for(lambda: bool(found.replies["last"]))
            yield found


@pytest.mark.parametrize("n", range(len(CASES)), ids=[c.name.replace(" ", "-") for c in CASES])
async def test_it_has_one_clear_outcome(world: World, n: int) -> None:
    replies = world.replies[f"case {n}"]
    assert len(replies) == 1
    outcome = replies[0]["problem"]["code"] if "problem" in replies[0] else replies[0]["status"]
    assert outcome == CASES[n].expected
    if CASES[n].expected == "accepted":
        await world.wait_for(lambda: bool(world.find_events(replies[0]["command_id"])))
        assert isinstance(replies[0]["outplan"]["dial_timeout"], int)


async def test_the_neighbours_are_done_as_if_it_were_not_there(world: World) -> None:
    outcomes = [world.replies[f"before {n}"] for n in range(len(CASES))]

    assert [[r["status"] for r in replies] for replies in outcomes] == [["accepted"]] * len(CASES)
    assert [r[0]["outplan"]["name"] for r in outcomes] == [c.name for c in CASES]
    await world.wait_for(lambda: all(world.find_events(f"before {n}") for n in range(len(CASES))))


@pytest.fixture(scope="module")
async def rejected(world: World) -> dict[str, Delivery]:
    """The rejected copies by correlation id, read by what can read any bytes."""
    layout = topology(world.deployment.prefix)
    reading = replace(layout, command_queues=(layout.rejected,), bindings=())
    count = sum(c.expected != "accepted" for c in CASES)
    copies: list[Delivery] = []
    async with open_session(world.deployment.amqp_url, reading, print) as session:
        async with asyncio.timeout(30):
            while len(copies) < count:
                copies += await session.receive(1_000)
    return {copy.properties.correlation_id or "": copy for copy in copies}


async def test_every_refused_one_is_kept_byte_for_byte(rejected: dict[str, Delivery]) -> None:
    refused = {f"case {n}": c for n, c in enumerate(CASES) if c.expected != "accepted"}

    assert list(rejected) == list(refused)
    assert {k: copy.body for k, copy in rejected.items()} == {k: c.body for k, c in refused.items()}
    for key, each in refused.items():
        assert wire(rejected[key]).headers["x-problem-code"] == each.expected
        assert_kept(each, wire(rejected[key]))


def wire(delivery: Delivery) -> WireProperties:
    assert isinstance(delivery.properties, WireProperties)
    return delivery.properties


def assert_kept(case: Case, properties: WireProperties) -> None:
    for name, value in case.properties.items():
        if name == "headers":
            continue
        kept = getattr(properties, {"type": "message_type"}.get(name, name))
        text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        assert kept == text, name


async def test_odd_headers_are_kept_beside_the_problem(rejected: dict[str, Delivery]) -> None:
    n = next(n for n, c in enumerate(CASES) if c.name == "odd headers, refused")

    kept = dict(wire(rejected[f"case {n}"]).headers)

    assert json.loads(kept.pop("x-problem"))["code"] == "invalid_command"
    for name in ("outplan_id", "traceparent", "decimal", "time", "nested", "", "ключ"):
        assert kept[name] == ODD_HEADERS[name]


async def test_headers_that_leave_no_room_are_dropped_and_that_is_said(
    rejected: dict[str, Delivery],
) -> None:
    n = next(n for n, c in enumerate(CASES) if c.name == "a header that fills a frame")

    headers = wire(rejected[f"case {n}"]).headers

    assert headers["x-headers-dropped"] is True
    assert "h" not in headers


async def test_the_worker_goes_on(world: World) -> None:
    reply: Document = await world.ask("outplan_create", create_body())

    assert reply["status"] == "accepted"
    assert reply["outplan"]["customer_id"] == CUSTOMER

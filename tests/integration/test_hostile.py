"""Send hostile input between valid commands: each has one outcome, and no neighbour is affected.

Everything is in the queue before the worker starts, so that the worker takes it in batches.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from outplan.contract.amqp import Delivery
from outplan.contract.fields import MAX_BODY_BYTES, NIL_UUID
from outplan.contract.topology import build_topology
from outplan.rabbitmq.frames import WireProperties
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers
from tests.support.sessions import consume_queues
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, EVENT_QUEUE, TEL, Document, World, create_body, open_world


def create(**fields: Any) -> bytes:
    return json.dumps(create_body(**fields)).encode()


def pad_body(size: int) -> bytes:
    body = create(name="exact")
    return body + b" " * (size - len(body))


@dataclass(frozen=True)
class Case:
    """Describe one message; ``expected`` is "accepted" or the code of its problem."""

    name: str
    expected: str
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    routing_key: str = "outplan_create"


def case(name: str, expected: str, body: bytes, key: str = "outplan_create", **props: Any) -> Case:
    """Build a case; ``props`` are its AMQP properties."""
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
    case("whitespace", "invalid_json", b" \n"),
    case("not UTF-8", "invalid_json", create().replace(b"test", b"t\xffst")),
    case("UTF-16", "invalid_json", create().decode().encode("utf-16")),
    case("a byte order mark", "invalid_json", b"\xef\xbb\xbf" + create()),
    case("NaN", "invalid_json", VALUE.replace(b"-1", b"NaN")),
    case("Infinity", "invalid_json", VALUE.replace(b"-1", b"-Infinity")),
    case("a number too large for a float", "invalid_json", VALUE.replace(b"-1", b"1e999")),
    case("ten thousand levels", "invalid_json", b"[" * 10_000 + b"]" * 10_000),
    case("ten thousand objects", "invalid_json", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    case("a lone surrogate", "invalid_json", create().replace(b"test", b"\\ud800")),
    case("a surrogate in UTF-8", "invalid_json", create().replace(b"test", b"\xed\xa0\x80")),
    case("an array", "invalid_json", b"[1]"),
    case("null", "invalid_json", b"null"),
    case("two objects", "invalid_json", b"{} {}"),
    case("a trailing comma", "invalid_json", b'{"id": "7",}'),
    case("gzip", "invalid_json", gzip.compress(create()), content_encoding="gzip"),
    case("gzip without content_encoding", "invalid_json", gzip.compress(create())),
    case("an unknown encoding", "invalid_json", create(), content_encoding="utf-16"),
    case("identity", "accepted", create(), content_encoding="identity"),
    case("utf-8", "accepted", create(), content_encoding="UTF-8"),
    case("above uint64", "invalid_command", VALUE.replace(b"-1", b"18446744073709551616")),
    case("below int64", "invalid_command", VALUE.replace(b"-1", b"-9223372036854775809")),
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
    case("a NUL in the detail", "invalid_command", create(detail="a\0b")),
    case("a NUL in a field's name", "invalid_command", create(**{"na\0me": 1})),
    case("a name in emoji", "accepted", create(name="📞" * 255)),
    case("a name too long", "invalid_command", create(name="x" * 256)),
    case("a detail too long", "invalid_command", create(detail="x" * 65_536)),
    case("ten thousand fields", "invalid_command", create(**{f"f{n}": n for n in range(10_000)})),
    case("a body of the maximum size", "accepted", pad_body(MAX_BODY_BYTES)),
    case("a body one byte too large", "too_large", pad_body(MAX_BODY_BYTES + 1)),
    case("a megabyte", "too_large", b"x" * 1_000_000),
    case("a message_id of 255 bytes", "accepted", create(), message_id="m" * 255),
    case("a message_id in Greek", "accepted", create(), message_id="μ" * 127),
    case("an odd message_id", "accepted", create(), message_id="$where.a\0b\n"),
    case("a message_id that is not UTF-8", "missing_message_id", create(), message_id=b"\xff\xfe"),
    case("an empty message_id", "missing_message_id", create(), message_id=""),
    case("a type that is not UTF-8", "unknown_command", create(), type=b"\xc3\x28"),
    case("a routing key that is not UTF-8", "unknown_command", create(), b"\xc3\x28"),  # type: ignore[arg-type]
    case("odd headers", "accepted", create(), headers=ODD_HEADERS),
    case("odd headers, rejected", "invalid_command", b"{}", headers=ODD_HEADERS),
    case("a header that fills a frame", "invalid_command", b"{}", headers={"h": "x" * 130_500}),
    case("a timestamp in 1970", "accepted", create(), timestamp=0),
    case("a timestamp in milliseconds", "accepted", create(), timestamp=1_764_000_000_000),
    case("a timestamp after year 9999", "accepted", create(), timestamp=2**63 - 1),
    case("a timestamp after year 9999, rejected", "invalid_command", b"{}", timestamp=2**63 - 1),
    case("an app_id that is not UTF-8", "invalid_command", b"{}", app_id=b"\xff"),
    case("a priority of 255", "accepted", create(), priority=255),
]  # fmt: skip


@pytest.fixture(scope="module")
async def world(servers: Servers) -> AsyncIterator[World]:
    """Send each case after a valid command, then start a worker and wait for the last reply."""
    async with (
        open_deployment(servers, further_queues=[EVENT_QUEUE]) as deployment,
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
async def test_each_case_has_one_outcome(world: World, n: int) -> None:
    replies = world.replies[f"case {n}"]
    assert len(replies) == 1
    outcome = replies[0]["problem"]["code"] if "problem" in replies[0] else replies[0]["status"]
    assert outcome == CASES[n].expected
    if CASES[n].expected == "accepted":
        await world.wait_for(lambda: bool(world.find_events(replies[0]["command_id"])))
        assert isinstance(replies[0]["outplan"]["dial_timeout"], int)


async def test_every_neighbour_is_accepted_and_published(world: World) -> None:
    outcomes = [world.replies[f"before {n}"] for n in range(len(CASES))]

    assert [[r["status"] for r in replies] for replies in outcomes] == [["accepted"]] * len(CASES)
    assert [r[0]["outplan"]["name"] for r in outcomes] == [c.name for c in CASES]
    await world.wait_for(lambda: all(world.find_events(f"before {n}") for n in range(len(CASES))))


@pytest.fixture(scope="module")
async def rejected_copies(world: World) -> dict[str, Delivery]:
    """Return the rejected copies by correlation id, read by the service's own session.

    aio-pika cannot decode some of them.
    """
    layout = build_topology(world.deployment.prefix)
    count = sum(c.expected != "accepted" for c in CASES)
    copies: list[Delivery] = []
    async with consume_queues(world.deployment.amqp_url, layout, [layout.rejected]) as session:
        async with asyncio.timeout(30):
            while len(copies) < count:
                copies += await session.receive(1_000)
    return {copy.properties.correlation_id or "": copy for copy in copies}


async def test_every_rejected_copy_keeps_its_bytes_and_properties(
    rejected_copies: dict[str, Delivery],
) -> None:
    expected = {f"case {n}": c for n, c in enumerate(CASES) if c.expected != "accepted"}

    assert list(rejected_copies) == list(expected)
    assert {k: copy.body for k, copy in rejected_copies.items()} == {
        k: c.body for k, c in expected.items()
    }
    for key, each in expected.items():
        assert wire_properties(rejected_copies[key]).headers["x-problem-code"] == each.expected
        assert_properties_kept(each, wire_properties(rejected_copies[key]))


def wire_properties(delivery: Delivery) -> WireProperties:
    assert isinstance(delivery.properties, WireProperties)
    return delivery.properties


def assert_properties_kept(case: Case, properties: WireProperties) -> None:
    for name, value in case.properties.items():
        if name == "headers":
            continue
        kept = getattr(properties, {"type": "message_type"}.get(name, name))
        text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        assert kept == text, name


async def test_odd_headers_stay_beside_the_problem(rejected_copies: dict[str, Delivery]) -> None:
    n = next(n for n, c in enumerate(CASES) if c.name == "odd headers, rejected")

    kept = dict(wire_properties(rejected_copies[f"case {n}"]).headers)

    assert json.loads(kept.pop("x-problem"))["code"] == "invalid_command"
    for name in ("outplan_id", "traceparent", "decimal", "time", "nested", "", "ключ"):
        assert kept[name] == ODD_HEADERS[name]


async def test_headers_that_leave_no_room_are_dropped_with_a_mark(
    rejected_copies: dict[str, Delivery],
) -> None:
    n = next(n for n, c in enumerate(CASES) if c.name == "a header that fills a frame")

    headers = wire_properties(rejected_copies[f"case {n}"]).headers

    assert headers["x-headers-dropped"] is True
    assert "h" not in headers


async def test_the_worker_still_accepts_commands(world: World) -> None:
    reply: Document = await world.ask("outplan_create", create_body())

    assert reply["status"] == "accepted"
    assert reply["outplan"]["customer_id"] == CUSTOMER

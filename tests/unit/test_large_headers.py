"""Headers as large as a frame: parse them once a command, and few commands at a time.

Parsing blocks the event loop, and with it the heartbeats. The tests compare CPU times of the same
process.
"""

from collections.abc import Callable
from time import process_time
from typing import Final

import pytest

from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.domain.codec import Outcome, build_publications
from outplan.rabbitmq.frames import U32, WireProperties, read_content_header, write_table
from outplan.rabbitmq.session import Inbox
from tests.support.samples import NOW_MOMENT
from tests.support.wire import build_content_header, make_delivery, read_table

READ: Final = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "a=b",
    "x-delivery-count": 2,
}
# 124 kB, about a frame, of fields of two bytes, which is the shortest.
WORST: Final = b"\x00V" * 62_000 + write_table(READ)[4:]


def with_reply_to(table: bytes) -> WireProperties:
    """Make the properties of a command with these headers, whose sender wants a reply."""
    return read_content_header(
        build_content_header(0x2200, U32.pack(len(table)) + table + b"\x02me")
    )


def measure_cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of five runs."""
    found = []
    for _ in range(5):
        since = process_time()
        work()
        found.append(process_time() - since)
    return min(found)


def test_a_commands_headers_are_parsed_once() -> None:
    def publish_all() -> None:
        taken = make_delivery(with_reply_to(WORST))
        assert taken.delivery_count == 2
        for _ in range(2):  # Once for an event, once for a reply.
            [reply] = build_publications(Outcome(taken, "unchanged"), build_topology(), NOW_MOMENT)
            assert reply.headers == {k: v for k, v in READ.items() if k != "x-delivery-count"}

    walk = measure_cpu(lambda: read_table(WORST).header("tracestate"))

    assert measure_cpu(publish_all) < 2 * walk


def test_absent_headers_are_searched_once() -> None:
    """Their names are part of another header's value."""
    table = b"\x00V" * 62_000 + write_table({"a": " ".join(READ)})[4:]

    def read(sent: WireProperties) -> None:
        for name in READ:
            assert sent.header(name) is None

    walk = measure_cpu(lambda: read_table(table).header("tracestate"))

    assert measure_cpu(lambda: read(read_table(table))) < 2 * walk


def test_listing_all_headers_takes_linear_time() -> None:
    def list_headers(fields: int) -> None:
        table = write_table({f"h{n}": True for n in range(fields)})[4:]
        assert len(read_table(table).headers) == fields

    assert measure_cpu(lambda: list_headers(4_000)) < 8 * measure_cpu(lambda: list_headers(1_000))


@pytest.mark.parametrize(("headers", "taken"), [(WORST, 17), (write_table(READ)[4:], 500)])
async def test_the_size_of_the_headers_bounds_a_batch(headers: bytes, taken: int) -> None:
    inbox = Inbox()
    sent: list[Delivery] = [make_delivery(with_reply_to(headers)) for _ in range(600)]
    for each in sent:
        inbox.on_delivery(each)

    assert await inbox.take(500) == sent[:taken]
    assert await inbox.take(500) == sent[taken : min(2 * taken, 600)]

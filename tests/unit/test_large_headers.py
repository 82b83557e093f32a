"""Headers that are as large as a frame: walked once a command, and few commands at a time.

Nothing else runs meanwhile, heartbeats least of all. What it costs is measured in the processor's
time, against the same kind of work in the same process.
"""

from collections.abc import Callable
from time import process_time
from typing import Final

import pytest

from outplan.contract.amqp import Delivery
from outplan.contract.topology import topology
from outplan.domain.codec import Outcome, publications
from outplan.rabbitmq.frames import U32, WireProperties, read_content_header, write_table
from outplan.rabbitmq.session import Inbox
from tests.support.samples import NOW_MOMENT
from tests.support.wire import delivered, header_of, with_table

READ: Final = {"traceparent": "00-trace", "tracestate": "a=b", "x-delivery-count": 2}
# 124 kB: a frame has room for little more, and no field is shorter than two bytes.
WORST: Final = b"\x00V" * 62_000 + write_table(READ)[4:]


def asking(table: bytes) -> WireProperties:
    """These headers, of a command whose sender wants a reply."""
    return read_content_header(header_of(0x2200, U32.pack(len(table)) + table + b"\x02me"))


def cost(work: Callable[[], object]) -> float:
    """The processor's seconds, at best of five."""
    found = []
    for _ in range(5):
        since = process_time()
        work()
        found.append(process_time() - since)
    return min(found)


def test_what_the_service_reads_of_a_commands_headers_costs_one_walk() -> None:
    def settled() -> None:
        taken = delivered(asking(WORST))
        assert taken.delivery_count == 2
        for _ in range(2):  # An event's, and a reply's.
            [reply] = publications(Outcome(taken, "unchanged"), topology(), NOW_MOMENT)
            assert reply.headers == {k: v for k, v in READ.items() if k != "x-delivery-count"}

    walk = cost(lambda: with_table(WORST).header("tracestate"))

    assert cost(settled) < 2 * walk


def test_headers_that_only_seem_to_be_there_are_looked_for_once() -> None:
    """Their names stand in a value, as a part of it."""
    table = b"\x00V" * 62_000 + write_table({"a": " ".join(READ)})[4:]

    def read(sent: WireProperties) -> None:
        for name in READ:
            assert sent.header(name) is None

    walk = cost(lambda: with_table(table).header("tracestate"))

    assert cost(lambda: read(with_table(table))) < 2 * walk


def test_showing_all_headers_costs_a_walk_and_not_one_for_each() -> None:
    def shown(fields: int) -> None:
        table = write_table({f"h{n}": True for n in range(fields)})[4:]
        assert len(with_table(table).headers) == fields

    assert cost(lambda: shown(4_000)) < 8 * cost(lambda: shown(1_000))


@pytest.mark.parametrize(("headers", "taken"), [(WORST, 17), (write_table(READ)[4:], 500)])
async def test_a_batch_is_bounded_by_its_headers_too(headers: bytes, taken: int) -> None:
    inbox = Inbox()
    sent: list[Delivery] = [delivered(asking(headers)) for _ in range(600)]
    for each in sent:
        inbox.on_delivery(each)

    assert await inbox.take(500) == sent[:taken]
    assert await inbox.take(500) == sent[taken : min(2 * taken, 600)]

"""Test retries of nacked messages, and waves: the order of an outplan's events."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outplan.contract.amqp import Publication
from outplan.rabbitmq.publisher import OnError, Publisher, split_into_waves
from tests.support.samples import delivery

EVENT = Publication("outplan.events", "k", b"{}", {})
COPY = Publication("", "outplan.rejected", b"{}", {}, original=delivery({}), mandatory=True)
REPLY = Publication("", "me", b"{}", {}, type="outplan_reply", best_effort=True)


class NackedPublisher(Publisher):
    """A publisher whose broker nacks messages by index; ``nacks`` has one list for each attempt."""

    def __init__(self, nacks: list[list[int]], on_error: OnError) -> None:
        unused: Any = None
        super().__init__(unused, unused, unused, "guest", on_error)
        self.nacks = [*nacks, []]
        self.sent: list[list[Publication]] = []
        self.channels = 1

    async def _replace_channel(self) -> None:
        self.channels += 1

    async def _publish_once(self, publications: Sequence[Publication]) -> list[int]:
        self.sent.append(list(publications))
        return self.nacks.pop(0)


async def publish(
    messages: list[Publication], *nacks: list[int]
) -> tuple[list[list[Publication]], list[str]]:
    """Publish; return the messages of each attempt, and the errors reported."""
    errors: list[str] = []
    publisher = NackedPublisher(list(nacks), lambda error: errors.append(str(error)))
    await publisher.publish(messages)
    assert publisher.channels == 1 + sum(map(bool, nacks))
    return publisher.sent, errors


async def test_publishing_nothing_sends_nothing() -> None:
    assert await publish([]) == ([], [])


async def test_a_nacked_reply_is_republished_and_not_reported() -> None:
    messages = [EVENT, REPLY, COPY, REPLY]
    assert await publish(messages, [1, 3], [0]) == ([messages, [REPLY, REPLY], [REPLY]], [])


async def test_a_reply_nacked_six_times_is_dropped() -> None:
    sent, errors = await publish([EVENT, REPLY], [1], *([0] for _ in range(5)))
    assert sent == [[EVENT, REPLY], *([REPLY] for _ in range(5))]
    assert errors == []


async def test_a_dropped_reply_leaves_fewer_attempts_for_the_next() -> None:
    nacks = [[0]] * 6 + [[1], [0]]
    publisher = NackedPublisher(nacks, lambda error: pytest.fail(str(error)))
    await publisher.publish([REPLY])
    await publisher.publish([EVENT, REPLY])
    assert publisher.sent == [[REPLY]] * 6 + [[EVENT, REPLY], [REPLY]]
    await publisher.publish([EVENT])


async def test_nacked_events_leave_replies_all_their_attempts() -> None:
    publisher = NackedPublisher([*[[0]] * 6, [], [0], [0]], lambda _: None)
    await publisher.publish([EVENT])
    await publisher.publish([REPLY])
    assert publisher.sent == [[EVENT]] * 7 + [[REPLY]] * 3


async def test_only_nacked_messages_are_republished_and_their_errors_reported() -> None:
    messages = [EVENT, REPLY, COPY, EVENT]
    sent, [error, other] = await publish(messages, [1, 2], [1])
    assert sent == [messages, [REPLY, COPY], [COPY]]
    assert "outplan.rejected" in error
    assert other == error


def make_event(outplan_id: str, version: int) -> Publication:
    headers = {"outplan_id": outplan_id, "version": version}
    return Publication("outplan.events", "k", b"{}", headers, outplan_id=outplan_id)


async def test_an_event_waits_for_the_confirm_of_its_outplans_previous_event() -> None:
    one, two, three = (make_event("a", version) for version in (1, 2, 3))
    other = make_event("b", 1)
    messages = [one, REPLY, two, REPLY, other, REPLY, COPY, REPLY, three]
    sent, _ = await publish(messages, [0], [], [])
    together = [one, REPLY, other, REPLY, COPY, REPLY]
    assert sent == [together, [one], [two, REPLY], [three]]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40))
def test_a_wave_has_one_event_of_each_outplan_and_waves_keep_the_order(
    outplan_ids: list[str | None],
) -> None:
    messages = [make_event(id_, n) if id_ else COPY for n, id_ in enumerate(outplan_ids)]
    waves = split_into_waves(messages)
    assert sorted(map(id, (m for wave in waves for m in wave))) == sorted(map(id, messages))
    for wave in waves:
        ids = [m.outplan_id for m in wave if m.outplan_id]
        assert len(ids) == len(set(ids))
    for id_ in "abc":
        versions = [m.headers["version"] for wave in waves for m in wave if m.outplan_id == id_]
        assert versions == sorted(versions)


@pytest.mark.parametrize("message", [REPLY, COPY])
def test_replies_and_rejected_copies_do_not_wait(message: Publication) -> None:
    assert split_into_waves([message] * 3) == [[message] * 3]


async def test_a_message_is_republished_until_it_is_confirmed() -> None:
    sent, errors = await publish([REPLY, EVENT], [0, 1], [1], [0])
    assert sent == [[REPLY, EVENT], [REPLY, EVENT], [EVENT], [EVENT]]
    assert len(errors) == 3
    assert "outplan.events" in errors[0]

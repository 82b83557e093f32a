"""What the broker refuses is sent again, in order; only a reply may be dropped."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.broker import Session, waves
from service.codec import Publication
from service.topology import topology
from tests.unit.samples import delivery

EVENT = Publication("outplan.events", "k", b"{}", {})
COPY = Publication("", "outplan.rejected", b"{}", {}, original=delivery({}))
REPLY = Publication("", "me", b"{}", {}, type="outplan_reply")


class Refusing(Session):
    """A session whose broker refuses these places of what it is sent, one attempt each."""

    refusals: list[list[int]]
    sent: list[list[Publication]]

    async def _publish_once(self, publications: Sequence[Publication]) -> list[int]:
        self.sent.append(list(publications))
        return self.refusals.pop(0)


async def published(
    messages: list[Publication], *refusals: list[int]
) -> tuple[list[list[Publication]], list[str]]:
    """The attempts that were needed, and what was noticed."""
    noticed: list[str] = []
    session = Refusing(topology(), "guest", lambda error: noticed.append(str(error)))
    session.refusals, session.sent = [*refusals, []], []
    await session.publish(messages)
    return session.sent, noticed


async def test_nothing_to_publish_is_not_sent() -> None:
    assert await published([]) == ([], [])


async def test_a_reply_that_is_refused_is_dropped() -> None:
    messages = [EVENT, REPLY, COPY, REPLY]
    assert await published(messages, [1, 3]) == ([messages], [])


async def test_what_is_refused_is_sent_again_and_nothing_else() -> None:
    messages = [EVENT, REPLY, COPY, EVENT]
    sent, [notice] = await published(messages, [1, 2])
    assert sent == [messages, [COPY]]
    assert "outplan.rejected" in notice


def an_event(outplan_id: str, version: int) -> Publication:
    return Publication("outplan.events", "k", b"{}", {"outplan_id": outplan_id, "version": version})


async def test_an_event_waits_for_the_one_before_it_of_its_outplan() -> None:
    one, two, three = (an_event("a", version) for version in (1, 2, 3))
    other = an_event("b", 1)
    messages = [one, REPLY, two, REPLY, other, REPLY, COPY, REPLY, three]
    sent, _ = await published(messages, [0], [], [])
    together = [one, REPLY, other, REPLY, COPY, REPLY]
    assert sent == [together, [one], [two, REPLY], [three]]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40))
def test_no_wave_has_two_events_of_one_outplan_and_none_is_out_of_turn(
    whose: list[str | None],
) -> None:
    messages = [an_event(id_, n) if id_ else COPY for n, id_ in enumerate(whose)]
    found = waves(messages)
    assert sorted(map(id, (m for wave in found for m in wave))) == sorted(map(id, messages))
    for wave in found:
        ids = [m.outplan_id for m in wave if m.outplan_id]
        assert len(ids) == len(set(ids))
    for id_ in "abc":
        versions = [m.headers["version"] for wave in found for m in wave if m.outplan_id == id_]
        assert versions == sorted(versions)


@pytest.mark.parametrize("message", [REPLY, COPY])
def test_what_is_no_event_waits_for_none(message: Publication) -> None:
    assert waves([message] * 3) == [[message] * 3]


async def test_it_is_sent_again_until_it_is_confirmed() -> None:
    sent, notices = await published([REPLY, EVENT], [0, 1], [0], [0])
    assert sent == [[REPLY, EVENT], [EVENT], [EVENT], [EVENT]]
    assert len(notices) == 3
    assert "outplan.events" in notices[0]

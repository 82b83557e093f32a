"""What the broker refuses is sent again, in order; only a reply may be dropped."""

from collections.abc import Sequence

from service.broker import Session
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


async def test_what_is_refused_is_sent_again_with_all_that_came_after() -> None:
    messages = [EVENT, REPLY, COPY, EVENT]
    sent, [notice] = await published(messages, [1, 2])
    assert sent == [messages, [COPY, EVENT]]
    assert "outplan.rejected" in notice


async def test_it_is_sent_again_until_it_is_confirmed() -> None:
    sent, notices = await published([REPLY, EVENT], [0, 1], [0], [0])
    assert sent == [[REPLY, EVENT], [EVENT], [EVENT], [EVENT]]
    assert len(notices) == 3
    assert "outplan.events" in notices[0]

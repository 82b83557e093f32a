"""Publishing with confirms, on one channel after the other of a connection."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame

from outplan.contract.amqp import Publication
from outplan.errors import Nacked, ReplyNacked
from outplan.rabbitmq.connection import ConnectionGuard
from outplan.rabbitmq.frames import write_publication
from outplan.retry import retrying

Notice = Callable[[BaseException], None]

# About two seconds of waits: in a cluster, a queue whose leader has died has another by then.
_REPLY_TRIES: Final = 6
_HASTY_TRIES: Final = 2
_HASTE_SECONDS: Final = 60


class Publisher:
    """Publishes as ``user``. Every call may raise BrokerUnavailable. Not for concurrent use."""

    def __init__(self, user: str, notice: Notice, guard: ConnectionGuard) -> None:
        self._user = user
        self._guard = guard
        self._confirms = _Confirms()
        self._hasty_until = 0.0
        self._retrying = retrying(Nacked, on_error=_unless_reply(notice))
        self._connection: AbstractConnection
        self._channel: AbstractChannel

    async def start(self, connection: AbstractConnection) -> None:
        """Publish on a channel of this connection."""
        self._connection = connection
        self._channel = await self._guard.channel(connection)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish and await every confirm; the events of an outplan in their order.

        What is refused is sent again for ever, a reply a few times. Of one outplan no event is
        sent before the one before it is confirmed: a subscriber's queue that was full might refuse
        the first and have room for the second.
        """
        for wave in waves(publications):
            await self._publish_wave(wave)

    async def blocked(self) -> bool:
        """Whether the broker holds publishers up, as it does in a memory or disk alarm."""
        try:
            async with asyncio.timeout(0.05):
                await self._connection.ready()
        except TimeoutError:
            return True
        return False

    def settle(self, tag: int, multiple: bool, confirmed: bool) -> None:
        """The broker's verdict on one message, or on all up to it."""
        self._confirms.settle(tag, multiple, confirmed)

    async def _publish_wave(self, publications: Sequence[Publication]) -> None:
        waiting = list(publications)
        tries = 0

        async def attempt() -> None:
            nonlocal waiting, tries
            refused = [waiting[n] for n in await self._publish_once(waiting)]
            if not refused:
                return
            await self._renew()
            tries += 1
            needed = [p for p in refused if not p.best_effort]
            has_replies = len(needed) < len(refused)
            waiting = needed if has_replies and self._gives_replies_up(tries) else refused
            if needed:
                raise Nacked(_refusal(needed[0]))
            if waiting:
                raise ReplyNacked(_refusal(waiting[0]))

        await self._retrying(attempt)

    async def _publish_once(self, publications: Sequence[Publication]) -> list[int]:
        """Publish all, in flight together; returns the places of those that were refused."""
        number, frame_max = self._channel.number, self._connection.connection_tune.frame_max
        frames = [write_publication(number, p, frame_max, self._user) for p in publications]
        confirmed = self._confirms.expect(len(frames))
        payload = ChannelFrame(b"".join(frames), should_close=False)
        await self._guard.hold(self._connection.write_queue.put(payload))
        return await self._guard.hold(confirmed)

    async def _renew(self) -> None:
        """Go on with another channel; nothing may be in flight.

        Once the node that led a queue has died, RabbitMQ 3.10 may refuse all that a channel
        publishes to that queue, until the node is back. A new channel knows the new leader.
        """
        await self._guard.close(self._channel)
        self._confirms = _Confirms()
        self._channel = await self._guard.channel(self._connection)

    def _gives_replies_up(self, tries: int) -> bool:
        """Whether replies refused so often are let go: all others wait meanwhile.

        For a minute after that there is less patience, so that one full reply queue costs little.
        """
        now = asyncio.get_running_loop().time()
        if tries < (_HASTY_TRIES if now < self._hasty_until else _REPLY_TRIES):
            return False
        self._hasty_until = now + _HASTE_SECONDS
        return True


def waves(publications: Iterable[Publication]) -> list[list[Publication]]:
    """What can be in flight together, one after the other: of each outplan one event at a time.

    A reply goes with what stands before it, which is what it tells of where there is such a thing.
    """
    found: list[list[Publication]] = []
    turns: Counter[str] = Counter()
    turn = 0
    for publication in publications:
        if outplan := publication.outplan_id:
            turn = turns[outplan]
            turns[outplan] += 1
        elif not publication.best_effort:
            turn = 0
        if turn == len(found):
            found.append([])
        found[turn].append(publication)
    return found


def _unless_reply(notice: Notice) -> Notice:
    """That a reply is refused is the asker's trouble: it makes nobody unready."""

    def noticed(error: BaseException) -> None:
        if not isinstance(error, ReplyNacked):
            notice(error)

    return noticed


def _refusal(publication: Publication) -> str:
    target = publication.exchange or publication.routing_key
    return f"the broker refuses messages to {target}: a full queue?"


class _Confirms:
    """The messages in flight on one channel, by the sequence numbers that both sides count."""

    def __init__(self) -> None:
        self._last = 0
        self._first = 1
        self._open: set[int] = set()
        self._refused: list[int] = []
        self._settled: asyncio.Future[list[int]]

    def expect(self, count: int) -> "asyncio.Future[list[int]]":
        """Await verdicts on the next ``count`` messages: the places of those refused."""
        self._first = self._last + 1
        self._last += count
        self._open = set(range(self._first, self._last + 1))
        self._refused = []
        self._settled = asyncio.get_running_loop().create_future()
        return self._settled

    def settle(self, tag: int, multiple: bool, confirmed: bool) -> None:
        if multiple:
            settled = {n for n in self._open if n <= tag}
            self._open -= settled
        else:
            settled = {tag} & self._open
            self._open.discard(tag)
        if not confirmed:
            self._refused += (n - self._first for n in settled)
        if settled and not self._open and not self._settled.done():
            self._settled.set_result(sorted(self._refused))

"""Publish with confirms, replacing the channel after each nack."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Self

from aiormq.channel import Channel

from outplan.contract.amqp import Publication
from outplan.errors import Nacked, ReplyNacked
from outplan.rabbitmq.connection import Connection, ConnectionGuard
from outplan.rabbitmq.frames import write_publication
from outplan.rabbitmq.reader import FrameHandler
from outplan.retry import retrying

OnError = Callable[[BaseException], None]

# About two seconds of waits: in a cluster, a queue whose leader died has a new one by then.
_REPLY_ATTEMPTS: Final = 6
_REPLY_ATTEMPTS_AFTER_DROP: Final = 2
_SECONDS_AFTER_DROP: Final = 60


@dataclass(slots=True)
class _Wave:
    """Messages in flight together: sequence numbers from ``first``, and the nacked positions."""

    first: int
    unconfirmed: set[int]
    nacked: list[int] = field(default_factory=list)
    done: "asyncio.Future[list[int]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Confirms(FrameHandler):
    """Match the broker's confirms with the messages in flight on one channel."""

    def __init__(self, guard: ConnectionGuard, mandatory_queue: str) -> None:
        self._guard = guard
        self._mandatory_queue = mandatory_queue
        self._last = 0
        self._wave: _Wave | None = None

    def restart(self) -> None:
        """Count from 1 again, as the broker does on a new channel; nothing may be in flight."""
        self._last = 0
        self._wave = None

    def expect_confirms(self, count: int) -> "asyncio.Future[list[int]]":
        """Return a future for the confirms of the next ``count`` messages.

        Its result is the positions of the nacked ones.
        """
        first = self._last + 1
        self._last += count
        self._wave = _Wave(first, set(range(first, self._last + 1)))
        return self._wave.done

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        wave = self._wave
        if wave is None:
            return
        if multiple:
            settled = {n for n in wave.unconfirmed if n <= tag}
            wave.unconfirmed -= settled
        else:
            settled = {tag} & wave.unconfirmed
            wave.unconfirmed.discard(tag)
        if not confirmed:
            wave.nacked += (n - wave.first for n in settled)
        if settled and not wave.unconfirmed and not wave.done.done():
            wave.done.set_result(sorted(wave.nacked))

    def on_return(self, reason: str) -> None:
        # Only rejected copies are mandatory. Their queue is gone; the next session declares it.
        self._guard.fail(f"queue {self._mandatory_queue} is gone: {reason}")


class Publisher:
    """A publisher for ``user``, made by ``open``. Not for concurrent use.

    Every call may raise BrokerUnavailable.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        confirms: Confirms,
        user: str,
        on_error: OnError,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._confirms = confirms
        self._user = user
        self._last_drop = -inf
        self._retrying = retrying(Nacked, on_error=_ignore_replies(on_error))

    @classmethod
    async def open(
        cls, connection: Connection, confirms: Confirms, user: str, on_error: OnError
    ) -> Self:
        """Publish on a channel of this connection; ``confirms`` becomes its frame handler."""
        return cls(connection, await connection.open_channel(confirms), confirms, user, on_error)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish messages and await every confirm.

        Keep one event of each outplan in flight at a time: a subscriber's full queue might refuse
        the first and have room for the second. Retry nacked messages until the broker confirms
        them; give up on replies after six attempts.
        """
        for wave in split_into_waves(publications):
            await self._publish_wave(wave)

    async def is_blocked(self) -> bool:
        """Return whether the broker blocks publishers, as it does in a memory or disk alarm."""
        return await self._connection.is_blocked()

    async def _publish_wave(self, publications: Sequence[Publication]) -> None:
        waiting = list(publications)
        attempts = 0

        async def attempt() -> None:
            nonlocal waiting, attempts
            nacked = [waiting[n] for n in await self._publish_once(waiting)]
            if not nacked:
                return
            await self._replace_channel()
            attempts += 1
            needed = [p for p in nacked if not p.best_effort]
            has_replies = len(needed) < len(nacked)
            waiting = nacked
            if has_replies and self._should_drop_replies(attempts):
                waiting = needed
                self._last_drop = asyncio.get_running_loop().time()
            if needed:
                raise Nacked(_describe_nack(needed[0]))
            if waiting:
                raise ReplyNacked(_describe_nack(waiting[0]))

        await self._retrying(attempt)

    async def _publish_once(self, publications: Sequence[Publication]) -> list[int]:
        """Publish all, in flight together; return the positions of those nacked."""
        number, frame_max = self._channel.number, self._connection.frame_max
        frames = [write_publication(number, p, frame_max, self._user) for p in publications]
        confirmed = self._confirms.expect_confirms(len(frames))
        await self._connection.write(b"".join(frames))
        return await self._connection.guard.wait(confirmed)

    async def _replace_channel(self) -> None:
        """Go on with a new channel; nothing may be in flight.

        After the node that led a queue has died, RabbitMQ 3.10 may nack all that a channel
        publishes to that queue until the node is back. A new channel knows the new leader.
        """
        await self._connection.close_channel(self._channel)
        self._confirms.restart()
        self._channel = await self._connection.open_channel(self._confirms)

    def _should_drop_replies(self, attempts: int) -> bool:
        """Drop a reply after six nacks, or after two within a minute of a drop.

        Everything else waits for it: a full reply queue must cost little.
        """
        since_drop = asyncio.get_running_loop().time() - self._last_drop
        is_soon = since_drop < _SECONDS_AFTER_DROP
        return attempts >= (_REPLY_ATTEMPTS_AFTER_DROP if is_soon else _REPLY_ATTEMPTS)


def split_into_waves(publications: Iterable[Publication]) -> list[list[Publication]]:
    """Split messages into waves that may be in flight together: one event an outplan in each.

    A reply goes with the message before it, which is the one that it reports on, if any.
    """
    waves: list[list[Publication]] = []
    turns: Counter[str] = Counter()
    turn = 0
    for publication in publications:
        if outplan := publication.outplan_id:
            turn = turns[outplan]
            turns[outplan] += 1
        elif not publication.best_effort:
            turn = 0
        if turn == len(waves):
            waves.append([])
        waves[turn].append(publication)
    return waves


def _ignore_replies(on_error: OnError) -> OnError:
    """Do not report nacked replies.

    A publisher's full reply queue must not make the worker unready.
    """

    def report(error: BaseException) -> None:
        if not isinstance(error, ReplyNacked):
            on_error(error)

    return report


def _describe_nack(publication: Publication) -> str:
    target = publication.exchange or publication.routing_key
    return (
        f"the broker nacked messages to {target}: find the full queue with rabbitmqctl "
        "list_queues; empty it or raise its limit"
    )

"""decode → validate → load → decide → commit. Returns outcomes; settles nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeVar

from outplan.contract.amqp import Delivery
from outplan.contract.messages import Problem
from outplan.domain.batch import Fold, Parsed, rejected
from outplan.domain.codec import Outcome, Request, parse
from outplan.domain.decider import State, outplan_id
from outplan.domain.dedup import MAX_TRIALS, Ledger
from outplan.domain.records import Fence, Record, Snapshot, Trial, Version
from outplan.errors import (
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    Unprocessable,
)
from outplan.retry import retrying

T = TypeVar("T")

# A batch that meets so many conflicts in a row is to be taken apart: it may be too large for the
# server's memory, or an outplan's document may contradict its history.
_CONFLICTS: Final = 8
_RELEASE_SECONDS: Final = 2


class Transaction(Protocol):
    """What a batch reads and writes: all of it stored at its end, or nothing.

    save        StoreConflict where an outplan has another version than ``known``, or an event's
                id or place in its outplan's history is taken
    read_fence  and hold: Fenced where another worker has claimed the queue since
    """

    async def load(
        self,
        outplan_ids: Iterable[str],
        command_ids: Iterable[str],
        past: Collection[Version] = (),
    ) -> Snapshot: ...
    async def save(self, records: Sequence[Record], known: dict[str, State]) -> None: ...
    async def read_fence(self, fence: Fence) -> Fence: ...
    async def hold(self, fence: Fence) -> None: ...


class Store(Protocol):
    """Where the handler's batches are kept: ``outplan.mongodb.store`` has the real one.

    Any call may raise StoreUnavailable, which does not say that nothing was stored.

    claim         raises the queue's epoch, which fences every earlier holder off
    put_on_trial  writes down at once what is handled next, and alone. Raises Fenced
    transact      runs ``work`` in one transaction, and all of it where its caller is cancelled.
                  Raises what ``work`` does, StoreConflict and Unprocessable
    """

    async def claim(self, queue: str, worker: str) -> Fence: ...
    async def put_on_trial(self, fence: Fence, trial: Trial) -> None: ...
    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T: ...


class Handler:
    """One session's judge: batches in order, one at a time.

    Raises Fenced when another worker has taken a queue over, and what ``confirm_ownership`` does.
    ``confirm_ownership`` returns when the broker has said that the session's consumers are still
    its own.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        window: int,
        clock: Callable[[], str],
        notice: Callable[[BaseException], None],
        confirm_ownership: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._worker = worker
        self._window = window
        self._clock = clock
        self._confirm_ownership = confirm_ownership
        self._waiting = retrying(StoreUnavailable, StoreConflict, on_error=notice)
        self._contending = retrying(StoreConflict, on_error=notice, attempts=_CONFLICTS)
        self._trying = retrying(Unprocessable, on_error=notice, attempts=MAX_TRIALS + 1)
        self._ledgers: dict[str, Ledger] = {}
        self._in_doubt = False

    async def handle(self, batch: Sequence[Delivery]) -> list[Outcome]:
        """Judge a batch and commit what it decided, in one transaction.

        Raises Unprocessable where the batch must be taken apart, having stored nothing.
        """
        parsed = [_parsed(delivery) for delivery in batch]
        requests = [item for item in parsed if isinstance(item, Request)]
        if not requests:
            return [rejected(*item) for item in parsed if not isinstance(item, Request)]
        await self._claim({request.delivery.queue for request in requests})
        return await self._waiting(self._store_batch, parsed, requests)

    async def handle_alone(self, delivery: Delivery) -> list[Outcome]:
        """Judge one delivery on trial, for it may be what ended a worker, or a batch.

        The trial is written down first. A message whose trials all came to nothing is rejected
        as ``delivery_limit``, unread.
        """
        await self._claim({delivery.queue})
        try:
            outcomes: list[Outcome] = await self._trying(self._try, delivery)
        except Unprocessable:
            outcomes = [_given_up(delivery)]
        self._ledgers[delivery.queue].exonerate()
        return outcomes

    def acquit(self, delivery: Delivery) -> None:
        """Say that a delivery handled alone is settled, so that its trial has ended well."""
        self._ledgers[delivery.queue].acquit()

    async def release(self) -> None:
        """Say that the session ends by no fault of what is on trial, as far as it can be said."""
        for ledger in self._ledgers.values():
            if trial := ledger.withdrawn():
                with suppress(OutplanError, TimeoutError):
                    async with asyncio.timeout(_RELEASE_SECONDS):
                        await self._store.put_on_trial(ledger.current, trial)

    async def _claim(self, queues: set[str]) -> None:
        new = queues - self._ledgers.keys()
        claimed: dict[str, Ledger] = {}
        for queue in new:
            fence: Fence = await self._waiting(self._store.claim, queue, self._worker)
            claimed[queue] = Ledger(fence, self._window)
        if new:
            # Somebody else may have settled what is in hand while this worker stood still: then
            # the claim came too late, and it is that one's queue.
            await self._confirm_ownership()
        self._ledgers |= claimed

    async def _try(self, delivery: Delivery) -> list[Outcome]:
        ledger = self._ledgers[delivery.queue]
        trial = ledger.next_trial(delivery.fingerprint)
        if trial is None:
            # What is stored is to be published, whoever was ended by that.
            known = await self._is_known(delivery)
            return await self.handle([delivery]) if known else [_given_up(delivery)]
        await self._waiting(self._store.put_on_trial, ledger.current, trial)
        ledger.put_on_trial(trial)
        return await self.handle([delivery])

    async def _is_known(self, delivery: Delivery) -> bool:
        if self._ledgers[delivery.queue].recall(delivery):
            return True
        recorded = partial(_is_recorded, delivery.command_id)
        known: bool = await self._waiting(self._store.transact, recorded)
        return known

    async def _store_batch(self, parsed: list[Parsed], requests: list[Request]) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = await self._contending(self._attempt, parsed, requests)
        except StoreConflict as error:
            if isinstance(error, StoreAborted) and len(parsed) == 1:
                raise  # It can't be smaller, and is not to blame: go on waiting.
            raise Unprocessable(f"conflict after conflict: {error}") from error
        return outcomes

    async def _attempt(self, parsed: list[Parsed], requests: list[Request]) -> list[Outcome]:
        in_doubt = self._in_doubt

        async def work(transaction: Transaction) -> tuple[list[Outcome], list[Fence]]:
            if in_doubt:
                await self._learn(transaction)
            known = await transaction.load(
                {outplan_id(request.command, request.command_id) for request in requests},
                {request.command_id for request in requests},
                self._recalled(requests),
            )
            fold = Fold(known, self._ledgers, self._clock())
            outcomes = [fold.judge(item) for item in parsed]
            await transaction.save(fold.decided, known.states)
            fences = self._fences(requests, fold)
            for fence in fences:
                await transaction.hold(fence)
            return outcomes, fences

        self._in_doubt = True
        outcomes, fences = await self._store.transact(work)
        self._in_doubt = False
        for fence in fences:
            self._ledgers[fence.queue].keep(fence)
        return outcomes

    async def _learn(self, transaction: Transaction) -> None:
        """An attempt failed, and no failure says for sure that nothing of it was stored."""
        for ledger in self._ledgers.values():
            ledger.learn(await transaction.read_fence(ledger.current))

    def _recalled(self, requests: list[Request]) -> set[Version]:
        """The versions in which those that come back had found nothing to change."""
        found = ((r, self._ledgers[r.delivery.queue].recall(r.delivery)) for r in requests)
        return {
            (outplan_id(request.command, request.command_id), verdict.version)
            for request, verdict in found
            if verdict is not None and verdict.code is None and verdict.version is not None
        }

    def _fences(self, requests: list[Request], fold: Fold) -> list[Fence]:
        fences = []
        for queue in dict.fromkeys(request.delivery.queue for request in requests):
            batch = [r.delivery for r in requests if r.delivery.queue == queue]
            judged = [verdict for r, verdict in fold.verdicts if r.delivery.queue == queue]
            accepted = [r.delivery for r in fold.accepted if r.delivery.queue == queue]
            fences.append(self._ledgers[queue].fence(batch, judged, accepted))
        return fences


def _given_up(delivery: Delivery) -> Outcome:
    detail = "each worker that tried it ended, or failed; see the workers' logs"
    return rejected(delivery, Problem.of("delivery_limit", detail, delivery.command_id))


async def _is_recorded(command_id: str | None, transaction: Transaction) -> bool:
    known = await transaction.load((), [command_id] if command_id else ())
    return bool(known.records)


def _parsed(delivery: Delivery) -> Parsed:
    try:
        found = parse(delivery)
    except Exception as error:  # A bug; its neighbours are not to suffer.
        raise Unprocessable(f"parse failed: {error!r}") from error
    return found if isinstance(found, Request) else (delivery, found)

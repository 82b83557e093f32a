"""Turn deliveries into outcomes: parse, load, decide and commit. Publish and ack nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.times import Clock, format_time
from outplan.contract.topology import NO_PHASE
from outplan.domain.batch import decide_batch
from outplan.domain.codec import Outcome, ParsedCommand, parse, reject
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.poison import MAX_ATTEMPTS, PoisonGuard
from outplan.domain.records import Fence, OutplanVersion
from outplan.errors import (
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    Unprocessable,
)
from outplan.retry import retrying
from outplan.worker.ports import BatchTransaction, OutplanStore, Registry

# Split a batch after this many conflicts in a row: it may need more memory than the server has, or
# the document of one outplan may contradict its history.
_MAX_CONFLICTS: Final = 8
_RELEASE_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class _Claim:
    """Hold a session's fence, window and guard for one queue."""

    queue: str
    epoch: int
    window: DeduplicationWindow
    guard: PoisonGuard
    crashes: int

    @property
    def fence(self) -> Fence:
        return Fence(self.queue, self.epoch, self.window.outcomes, self.guard.attempt)


class Handler:
    """Handle one session's batches in order, one at a time.

    ``confirm_ownership`` returns when the broker has shown that no other consumer has got these
    deliveries; the handler raises what it raises. The handler calls ``on_error`` with every error
    that it retries. ``generation`` is the session's layout.
    """

    def __init__(
        self,
        *,
        store: OutplanStore,
        registry: Registry,
        worker: str,
        generation: int,
        window: int,
        clock: Clock,
        on_error: Callable[[BaseException], None],
        confirm_ownership: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._registry = registry
        self._worker = worker
        self._generation = generation
        self._window = window
        self._clock = clock
        self._confirm_ownership = confirm_ownership
        self._retry_until_available = retrying(StoreUnavailable, StoreConflict, on_error=on_error)
        self._retry_conflicts = retrying(StoreConflict, on_error=on_error, attempts=_MAX_CONFLICTS)
        self._retry_failures = retrying(Unprocessable, on_error=on_error, attempts=MAX_ATTEMPTS + 1)
        self._claims: dict[str, _Claim] = {}
        self._is_commit_unknown = False

    async def handle(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Decide a batch and commit it in one transaction; return the outcomes in order.

        Raises Unprocessable if the batch must be split, and Fenced if another worker has claimed a
        queue. Neither stores anything.
        """
        parsed = _parse(deliveries)
        commands = [item for item in parsed if isinstance(item, ParsedCommand)]
        if not commands:
            return [item for item in parsed if isinstance(item, Outcome)]
        await self._claim({command.delivery.queue for command in commands})
        outcomes: list[Outcome] = await self._retry_until_available(self._commit, parsed, commands)
        return outcomes

    async def handle_alone(self, delivery: Delivery) -> Outcome:
        """Handle one delivery that may be a poison message.

        Record each attempt before it starts. Reject a message that has used all its attempts as
        ``delivery_limit``, unless it has an outcome already.
        """
        await self._claim({delivery.queue})
        try:
            outcome: Outcome = await self._retry_failures(self._attempt_alone, delivery)
        except Unprocessable:
            outcome = _give_up(delivery)
        self._claims[delivery.queue].guard.mark_handled()
        return outcome

    def end_attempt(self, delivery: Delivery) -> None:
        """End the attempt at a delivery that was handled alone, now that it is acked."""
        self._claims[delivery.queue].guard.clear()

    async def pass_barrier(self, delivery: Delivery) -> None:
        """Note that every delivery before this barrier in its queue is published and acked."""
        queue, token = delivery.queue, delivery.properties.message_id or ""
        if token != NO_PHASE:
            await self._retry_until_available(self._registry.mark_drained, queue, token)

    async def count_crashes(self, deliveries: Sequence[Delivery]) -> int:
        """Count the sessions in a row before this one, for one queue, that ended with a crash."""
        queues = {delivery.queue for delivery in deliveries}
        await self._claim(queues)
        return max(self._claims[queue].crashes for queue in queues)

    async def release(self) -> None:
        """End the session's claims cleanly; give up after 2 s.

        Refund attempts at messages that have an outcome and no ack.
        """
        fences = [Fence(c.queue, c.epoch, attempt=c.guard.refund()) for c in self._claims.values()]
        with suppress(OutplanError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._store.release(fences)

    async def _claim(self, queues: set[str]) -> None:
        new = queues - self._claims.keys()
        if not new:
            return
        claimed: dict[str, _Claim] = {}
        for queue in new:
            fence: Fence = await self._retry_until_available(
                self._store.claim, queue, self._worker, self._generation
            )
            window = DeduplicationWindow(fence.outcomes, self._window)
            guard = PoisonGuard(fence.attempt)
            claimed[queue] = _Claim(queue, fence.epoch, window, guard, fence.crashes)
        # If this worker stalled, another one may have acked this batch: verify ownership.
        await self._confirm_ownership()
        self._claims |= claimed

    async def _attempt_alone(self, delivery: Delivery) -> Outcome:
        claim = self._claims[delivery.queue]
        attempt = claim.guard.next_attempt(delivery.fingerprint)
        if attempt is not None:
            await self._retry_until_available(self._store.record_attempt, claim.fence, attempt)
            claim.guard.record_attempt(attempt)
        elif not (claim.window.recall(delivery) or await self._is_stored(delivery)):
            return _give_up(delivery)
        # Publish a stored command even if it has used up its attempts.
        [outcome] = await self.handle([delivery])
        return outcome

    async def _is_stored(self, delivery: Delivery) -> bool:
        async def has_event(transaction: BatchTransaction) -> bool:
            ids = [delivery.command_id] if delivery.command_id else []
            return bool((await transaction.load((), ids)).records)

        found: bool = await self._retry_until_available(self._store.transact, has_event)
        return found

    async def _commit(
        self, parsed: list[ParsedCommand | Outcome], commands: list[ParsedCommand]
    ) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = await self._retry_conflicts(self._transact, parsed, commands)
        except StoreConflict as error:
            if isinstance(error, StoreAborted) and len(parsed) == 1:
                raise  # A single command cannot be split and is not at fault: keep retrying.
            text = f"{_MAX_CONFLICTS} conflicts in a row, so the worker splits the batch: {error}"
            raise Unprocessable(text) from error
        return outcomes

    async def _transact(
        self, parsed: list[ParsedCommand | Outcome], commands: list[ParsedCommand]
    ) -> list[Outcome]:
        # Assume that the batch may be stored: no error proves the contrary.
        work = partial(self._work, parsed, commands, reconcile=self._is_commit_unknown)
        self._is_commit_unknown = True
        outcomes, fences = await self._store.transact(work)
        self._is_commit_unknown = False
        for fence in fences:
            self._claims[fence.queue].window.commit(fence.outcomes)
        return outcomes

    async def _work(
        self,
        parsed: list[ParsedCommand | Outcome],
        commands: list[ParsedCommand],
        transaction: BatchTransaction,
        *,
        reconcile: bool,
    ) -> tuple[list[Outcome], list[Fence]]:
        """Run one attempt at a batch inside its transaction."""
        if reconcile:
            for claim in self._claims.values():
                claim.window.reconcile((await transaction.read_fence(claim.fence)).outcomes)
        windows = {queue: claim.window for queue, claim in self._claims.items()}
        snapshot = await transaction.load(
            {command.outplan_id for command in commands},
            {command.command_id for command in commands},
            _recalled_versions(commands, windows),
        )
        now = self._clock()
        decisions = decide_batch(parsed, snapshot, windows, format_time(now))
        fences = [
            Fence(
                queue,
                self._claims[queue].epoch,
                recorded,
                self._claims[queue].guard.attempt,
                lag=_measure_lag(commands, queue, now.timestamp()),
            )
            for queue, recorded in decisions.outcomes_by_queue.items()
        ]
        await transaction.save(decisions.records, snapshot.states, fences)
        return decisions.outcomes, fences


def _parse(deliveries: Sequence[Delivery]) -> list[ParsedCommand | Outcome]:
    try:
        return [parse(delivery) for delivery in deliveries]
    except Exception as error:  # A bug, which must not stop the other deliveries of the batch.
        raise Unprocessable(
            f"a bug in parsing, so the worker splits the batch: {error!r}"
        ) from error


def _recalled_versions(
    commands: list[ParsedCommand], windows: dict[str, DeduplicationWindow]
) -> set[OutplanVersion]:
    """Return the versions with which redelivered, unchanged commands were compared."""
    recalled = ((c, windows[c.delivery.queue].recall(c.delivery)) for c in commands)
    return {
        (command.outplan_id, outcome.version)
        for command, outcome in recalled
        if outcome is not None and outcome.code is None and outcome.version is not None
    }


def _measure_lag(commands: list[ParsedCommand], queue: str, now: float) -> float | None:
    """Return the age in seconds of the queue's oldest command; None if none has a timestamp."""
    deliveries = (c.delivery for c in commands if c.delivery.queue == queue)
    times = (delivery.properties.timestamp for delivery in deliveries)
    sent = [time for time in times if time is not None and time >= 0]
    return max(0.0, now - min(sent)) if sent else None


def _give_up(delivery: Delivery) -> Outcome:
    detail = "each worker that tried it ended, or failed; see the workers' logs"
    return reject(delivery, "delivery_limit", detail)

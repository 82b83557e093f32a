"""Turn deliveries into outcomes: parse, load, decide and commit. Nothing is published or acked."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.times import Clock, text_time
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
from outplan.worker.ports import BatchTransaction, OutplanStore

# After so many conflicts in a row a batch is split: it may be too large for the server's memory,
# or the document of one outplan may contradict its history.
_MAX_CONFLICTS: Final = 8
_RELEASE_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class _Claim:
    """Hold a session's fence, window and guard for one queue."""

    queue: str
    epoch: int
    window: DeduplicationWindow
    guard: PoisonGuard

    @property
    def fence(self) -> Fence:
        return Fence(self.queue, self.epoch, self.window.outcomes, self.guard.attempt)


class Handler:
    """Handles one session's batches in order, one at a time.

    ``confirm_ownership`` returns once the broker has shown that the session's consumers are still
    its own; what it raises, the handler raises. ``on_error`` hears of every retried error.
    """

    def __init__(
        self,
        *,
        store: OutplanStore,
        worker: str,
        window: int,
        clock: Clock,
        on_error: Callable[[BaseException], None],
        confirm_ownership: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._worker = worker
        self._window = window
        self._clock = clock
        self._confirm_ownership = confirm_ownership
        self._until_available = retrying(StoreUnavailable, StoreConflict, on_error=on_error)
        self._on_conflict = retrying(StoreConflict, on_error=on_error, attempts=_MAX_CONFLICTS)
        self._on_failure = retrying(Unprocessable, on_error=on_error, attempts=MAX_ATTEMPTS + 1)
        self._claims: dict[str, _Claim] = {}
        self._commit_unknown = False

    async def handle(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Decide a batch and commit it in one transaction; return the outcomes in order.

        Raises Unprocessable where the batch must be split, and Fenced where another worker has
        claimed a queue. Nothing is stored then.
        """
        parsed = _parse(deliveries)
        commands = [item for item in parsed if isinstance(item, ParsedCommand)]
        if not commands:
            return [item for item in parsed if isinstance(item, Outcome)]
        await self._claim({command.delivery.queue for command in commands})
        outcomes: list[Outcome] = await self._until_available(self._commit, parsed, commands)
        return outcomes

    async def handle_alone(self, delivery: Delivery) -> Outcome:
        """Handle one delivery that may be a poison message.

        Each attempt is recorded first. A message that has used all its attempts is rejected as
        ``delivery_limit`` without being parsed again.
        """
        await self._claim({delivery.queue})
        try:
            outcome: Outcome = await self._on_failure(self._attempt_alone, delivery)
        except Unprocessable:
            outcome = _give_up(delivery)
        self._claims[delivery.queue].guard.mark_handled()
        return outcome

    def clear(self, delivery: Delivery) -> None:
        """End the attempt at a delivery that was handled alone and is acked."""
        self._claims[delivery.queue].guard.clear()

    async def release(self) -> None:
        """Refund attempts that the end of the session cut short, as far as the store answers."""
        for claim in self._claims.values():
            if attempt := claim.guard.refund():
                with suppress(OutplanError, TimeoutError):
                    async with asyncio.timeout(_RELEASE_SECONDS):
                        await self._store.record_attempt(claim.fence, attempt)

    async def _claim(self, queues: set[str]) -> None:
        new = queues - self._claims.keys()
        if not new:
            return
        claimed: dict[str, _Claim] = {}
        for queue in new:
            fence: Fence = await self._until_available(self._store.claim, queue, self._worker)
            window = DeduplicationWindow(fence.outcomes, self._window)
            claimed[queue] = _Claim(queue, fence.epoch, window, PoisonGuard(fence.attempt))
        # If this worker stalled, another one may have acked this batch: verify ownership.
        await self._confirm_ownership()
        self._claims |= claimed

    async def _attempt_alone(self, delivery: Delivery) -> Outcome:
        claim = self._claims[delivery.queue]
        attempt = claim.guard.next_attempt(delivery.fingerprint)
        if attempt is not None:
            await self._until_available(self._store.record_attempt, claim.fence, attempt)
            claim.guard.record_attempt(attempt)
        elif not (claim.window.recall(delivery) or await self._is_stored(delivery)):
            return _give_up(delivery)
        # A stored command is published even when its attempts are used up.
        [outcome] = await self.handle([delivery])
        return outcome

    async def _is_stored(self, delivery: Delivery) -> bool:
        async def has_event(transaction: BatchTransaction) -> bool:
            ids = [delivery.command_id] if delivery.command_id else []
            return bool((await transaction.load((), ids)).records)

        found: bool = await self._until_available(self._store.transact, has_event)
        return found

    async def _commit(
        self, parsed: list[ParsedCommand | Outcome], commands: list[ParsedCommand]
    ) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = await self._on_conflict(self._transact, parsed, commands)
        except StoreConflict as error:
            if isinstance(error, StoreAborted) and len(parsed) == 1:
                raise  # A single command cannot be split and is not at fault: keep retrying.
            raise Unprocessable(f"conflict after conflict: {error}") from error
        return outcomes

    async def _transact(
        self, parsed: list[ParsedCommand | Outcome], commands: list[ParsedCommand]
    ) -> list[Outcome]:
        # No error tells for sure that nothing was stored.
        work = partial(self._work, parsed, commands, reconcile=self._commit_unknown)
        self._commit_unknown = True
        outcomes, fences = await self._store.transact(work)
        self._commit_unknown = False
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
        is_repeated = reconcile or any(command.delivery.redelivered for command in commands)
        snapshot = await transaction.load(
            {command.outplan_id for command in commands},
            {command.command_id for command in commands},
            _recalled_versions(commands, windows) if is_repeated else (),
        )
        decisions = decide_batch(parsed, snapshot, windows, text_time(self._clock()))
        fences = [
            Fence(queue, self._claims[queue].epoch, recorded, self._claims[queue].guard.attempt)
            for queue, recorded in decisions.recorded.items()
        ]
        await transaction.save(decisions.records, snapshot.states, fences)
        return decisions.outcomes, fences


def _parse(deliveries: Sequence[Delivery]) -> list[ParsedCommand | Outcome]:
    try:
        return [parse(delivery) for delivery in deliveries]
    except Exception as error:  # A bug, which must not stop the other deliveries of the batch.
        raise Unprocessable(f"parse failed: {error!r}") from error


def _recalled_versions(
    commands: list[ParsedCommand], windows: dict[str, DeduplicationWindow]
) -> set[OutplanVersion]:
    """Return the versions that redelivered commands were found unchanged against."""
    recalled = ((c, windows[c.delivery.queue].recall(c.delivery)) for c in commands)
    return {
        (command.outplan_id, outcome.version)
        for command, outcome in recalled
        if outcome is not None and outcome.code is None and outcome.version is not None
    }


def _give_up(delivery: Delivery) -> Outcome:
    detail = "each worker that tried it ended, or failed; see the workers' logs"
    return reject(delivery, "delivery_limit", detail)

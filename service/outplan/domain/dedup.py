"""Remember outcomes that leave no event until their commands can no longer be redelivered.

The worker recognises an accepted command by its event. A command that was rejected, or that changed
nothing, leaves no event. Suppose that a worker dies after it committed a later command for the
same outplan: the broker redelivers both. Decided again against the later state, the earlier
command might now change something, out of order and after its sender got another reply. So each
transaction also records such outcomes on the queue's fence (ADR 0005). Parsing needs no record:
it gives the same result again.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.topology import PREFETCH
from outplan.domain.records import RecordedOutcome

# A queue never has more messages in flight than its prefetch.
_MAX_OUTCOMES: Final = PREFETCH


class DeduplicationWindow:
    """One queue's recorded outcomes, as one session knows them.

    The broker redelivers a message only if it has not processed its ack. It sends at most ``size``
    messages beyond the last ack that it has processed, so older outcomes are dropped. Redelivered
    messages arrive before new ones: the first message that is not redelivered drops the outcomes
    of earlier sessions.

    ``select_outcomes`` changes nothing, so that a transaction can be retried; ``commit`` does.
    """

    def __init__(self, recorded: Iterable[RecordedOutcome], size: int) -> None:
        self._size = size
        self._inherited = {outcome.fingerprint: outcome for outcome in recorded}
        # Outcomes of a batch whose commit had an unknown result and was found to be stored.
        self._stored: dict[tuple[str, int], RecordedOutcome] = {}
        self._own: dict[str, RecordedOutcome] = {}
        self.outcomes: tuple[RecordedOutcome, ...] = tuple(self._inherited.values())

    def recall(self, delivery: Delivery) -> RecordedOutcome | None:
        """Return the recorded outcome of this very message, if there is one."""
        if not self._stored and not delivery.redelivered:
            return None
        fingerprint = delivery.fingerprint
        if stored := self._stored.get((fingerprint, delivery.tag)):
            return stored
        if not delivery.redelivered:
            return None
        # A cluster split by a network fault may redeliver within a session.
        return self._own.get(fingerprint) or self._inherited.get(fingerprint)

    def reconcile(self, stored: Iterable[RecordedOutcome]) -> None:
        """Adopt the outcomes that the fence holds after a commit of unknown result."""
        self._stored = {
            (outcome.fingerprint, outcome.tag): outcome
            for outcome in stored
            if outcome != self._inherited.get(outcome.fingerprint)
        }

    def select_outcomes(
        self,
        last: Delivery,
        recorded: Sequence[RecordedOutcome],
        accepted: Sequence[Delivery] = (),
    ) -> tuple[RecordedOutcome, ...]:
        """Return the outcomes to store with a batch.

        ``last`` is the batch's last delivery, ``recorded`` its new outcomes. An ``accepted``
        delivery keeps no outcome beside its event, not even one of an earlier message with the
        same fingerprint: that one would hide the event when both are redelivered.
        """
        oldest = last.tag - self._size
        only_new = not last.redelivered or oldest > 0
        replaced = {outcome.fingerprint for outcome in recorded}
        inherited = () if only_new else (o for k, o in self._inherited.items() if k not in replaced)
        recent = (o for k, o in self._own.items() if o.tag > oldest and k not in replaced)
        # A stored batch that is split still has these messages to handle.
        ahead = (o for o in self._stored.values() if o.tag > last.tag)
        kept = (*inherited, *recent, *recorded, *ahead)[-_MAX_OUTCOMES:]
        dropped = {delivery.fingerprint for delivery in accepted} if kept else ()
        return tuple(outcome for outcome in kept if outcome.fingerprint not in dropped)

    def commit(self, outcomes: tuple[RecordedOutcome, ...]) -> None:
        """Adopt what ``select_outcomes`` returned, now that it is committed."""
        self.outcomes = outcomes
        present = {id(outcome) for outcome in outcomes}
        self._inherited = {k: o for k, o in self._inherited.items() if id(o) in present}
        self._stored = {k: o for k, o in self._stored.items() if id(o) in present}
        others = {id(o) for o in (*self._inherited.values(), *self._stored.values())}
        self._own = {o.fingerprint: o for o in outcomes if id(o) not in others}

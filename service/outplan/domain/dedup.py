"""Verdicts that leave no event, kept until the broker must have had their acknowledgement.

An accepted command is found again by its event. One that changed nothing, or was refused, leaves
no trace; yet when a worker dies after a *later* command for the same outplan was committed, the
broker redelivers both, and judged afresh against the later state the earlier one might now take
effect: out of order, and after its sender was told otherwise. So each transaction also writes
down, on the queue's fence, what was judged without trace and may still come back.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.topology import PREFETCH
from outplan.domain.records import Fence, Trial, Verdict

MAX_TRIALS: Final = 5


class Ledger:
    """One session's side of a queue's fence. A retried batch asks again: only ``keep`` changes it.

    The broker sends at most a ``window`` of messages ahead of the acknowledgements that it has
    processed, of each queue at most ``PREFETCH``, so what was delivered that many messages ago
    cannot come back. And what comes back comes before anything new: from the first new message on,
    nothing is inherited.
    """

    def __init__(self, fence: Fence, window: int) -> None:
        self._window = window
        self._inherited = {v.message: v for v in fence.verdicts}
        self._landed: dict[tuple[str, int], Verdict] = {}
        self._own: dict[str, Verdict] = {}
        self._trying: Trial | None = None
        self._blameless = False
        self._fence = replace(fence, verdicts=tuple(self._inherited.values()))

    @property
    def current(self) -> Fence:
        """The fence as last written, as far as this session knows."""
        return self._fence

    def recall(self, delivery: Delivery) -> Verdict | None:
        """The verdict on an earlier judgement of this very message, if there was one."""
        if not self._landed and not delivery.redelivered:
            return None
        message = delivery.fingerprint
        if landed := self._landed.get((message, delivery.tag)):
            return landed
        if not delivery.redelivered:
            return None
        # A cluster that was torn apart gives them back within the session, too.
        return self._own.get(message) or self._inherited.get(message)

    def learn(self, stored: Fence) -> None:
        """Take in what the store has, after an attempt whose end is unknown: it may have landed."""
        self._landed = {
            (v.message, v.tag): v for v in stored.verdicts if v != self._inherited.get(v.message)
        }

    def fence(
        self,
        batch: Sequence[Delivery],
        judged: Sequence[Verdict],
        accepted: Sequence[Delivery] = (),
    ) -> Fence:
        """The fence to hold in the transaction of a batch that came to ``judged``.

        What was ``accepted`` has no verdict beside its event, not even that of an earlier message
        which can't be told from it: its event would not be published when both come back.
        """
        last = batch[-1]
        oldest = last.tag - self._window
        all_new = not last.redelivered or oldest > 0
        again = {v.message for v in judged}
        inherited = () if all_new else (v for k, v in self._inherited.items() if k not in again)
        recent = (v for k, v in self._own.items() if v.tag > oldest and k not in again)
        # What landed of a batch that is taken apart now has its turn yet to come.
        ahead = (v for v in self._landed.values() if v.tag > last.tag)
        kept = (*inherited, *recent, *judged, *ahead)[-PREFETCH:]
        gone = {delivery.fingerprint for delivery in accepted} if kept else ()
        return replace(self._fence, verdicts=tuple(v for v in kept if v.message not in gone))

    def next_trial(self, message: str) -> Trial | None:
        """The trial to put a message on; None where it has had all that it gets."""
        last = self._fence.trial
        times = last.times if last and last.message == message else 0
        return Trial(message, times + 1) if times < MAX_TRIALS else None

    def put_on_trial(self, trial: Trial) -> None:
        """The trial is written down: from here on it is this session's."""
        self._trying = trial
        self._blameless = False
        self._fence = replace(self._fence, trial=trial)

    def exonerate(self) -> None:
        """The message on trial is judged: should the session end now, it was not its fault."""
        self._blameless = True

    def acquit(self) -> None:
        """The message on trial is settled: what comes after is not to be counted with it."""
        self._trying = None
        self._fence = replace(self._fence, trial=None)

    def withdrawn(self) -> Trial | None:
        """What to write down where the session ends by no fault of the message on trial."""
        trial = self._trying
        return Trial(trial.message, trial.times - 1) if trial and self._blameless else None

    def keep(self, fence: Fence) -> None:
        """The transaction with this fence is committed."""
        self._fence = fence
        present = {id(v) for v in fence.verdicts}
        self._inherited = {k: v for k, v in self._inherited.items() if id(v) in present}
        self._landed = {k: v for k, v in self._landed.items() if id(v) in present}
        others = {id(v) for v in (*self._inherited.values(), *self._landed.values())}
        self._own = {v.message: v for v in fence.verdicts if id(v) not in others}

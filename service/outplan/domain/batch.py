"""Decide a batch in order and in memory: its outcomes, and what to store for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from outplan.contract.amqp import Delivery
from outplan.contract.messages import Event
from outplan.domain.codec import Outcome, ParsedCommand, reject
from outplan.domain.decider import Refusal, State, Unchanged, decide, evolve
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.records import Record, RecordedOutcome, Snapshot
from outplan.errors import Unprocessable


class Decisions(NamedTuple):
    """A decided batch: its outcomes, the events to store, and the outcomes for each fence."""

    outcomes: list[Outcome]
    records: list[Record]
    outcomes_by_queue: dict[str, tuple[RecordedOutcome, ...]]


def decide_batch(
    items: Sequence[ParsedCommand | Outcome],
    snapshot: Snapshot,
    windows: Mapping[str, DeduplicationWindow],
    now: str,
) -> Decisions:
    """Decide a batch in order. Raises Unprocessable if the rules fail by a bug.

    ``windows`` maps each queue's name to its window. ``now`` is the time of every change, in the
    contract's form.
    """
    batch = Batch(snapshot, windows, now)
    outcomes = [batch.decide(item) for item in items]
    return Decisions(outcomes, batch.records, batch.list_outcomes_to_record())


@dataclass(slots=True)
class _Queue:
    """The part of a batch that one queue's fence is about."""

    last: Delivery
    recorded: list[RecordedOutcome] = field(default_factory=list)
    accepted: list[Delivery] = field(default_factory=list)


class Batch:
    """A batch while it is decided: each command sees the changes of the commands before it."""

    def __init__(
        self, snapshot: Snapshot, windows: Mapping[str, DeduplicationWindow], now: str
    ) -> None:
        self._states = dict(snapshot.states)
        self._past = snapshot.past
        self._known = dict(snapshot.records)
        self._windows = windows
        self._now = now
        self._queues: dict[str, _Queue] = {}
        self.records: list[Record] = []

    def decide(self, item: ParsedCommand | Outcome) -> Outcome:
        """Return the outcome of the next delivery; an invalid delivery has its outcome already."""
        if isinstance(item, Outcome):
            return item
        queue = self._queues.setdefault(item.delivery.queue, _Queue(item.delivery))
        queue.last = item.delivery
        # Check recorded outcomes first: a resend may have been accepted since.
        if recorded := self._windows[item.delivery.queue].recall(item.delivery):
            return self._answer(item, recorded, queue)
        record = self._known.get(item.command_id)
        if record is not None and record.digest == item.digest:
            return _accept(item, record.event, duplicate=True)
        if (problem := item.objection) is not None:
            refusal = Refusal(problem.code, problem.detail)
        elif record is not None:
            detail = "this message_id was accepted before with other content"
            refusal = Refusal("message_id_reused", detail)
        else:
            return self._decide_anew(item, queue)
        return self._answer(item, _record_outcome(item, refusal), queue)

    def list_outcomes_to_record(self) -> dict[str, tuple[RecordedOutcome, ...]]:
        """Return the outcomes to store on each queue's fence with this batch."""
        return {
            name: self._windows[name].select_outcomes(queue.last, queue.recorded, queue.accepted)
            for name, queue in self._queues.items()
        }

    def _decide_anew(self, item: ParsedCommand, queue: _Queue) -> Outcome:
        state = self._states.get(item.outplan_id)
        try:
            decision = decide(state, item.command, item.command_id, self._now)
            if isinstance(decision, Event):
                self._states[item.outplan_id] = evolve(state, decision)
        except Exception as error:
            text = f"a bug in deciding command {item.command_id}: {error!r}"
            raise Unprocessable(text) from error
        if not isinstance(decision, Event):
            return self._answer(item, _record_outcome(item, decision, state), queue)
        record = self._known[item.command_id] = Record(decision, item.digest)
        self.records.append(record)
        queue.accepted.append(item.delivery)
        return _accept(item, decision)

    def _answer(self, item: ParsedCommand, recorded: RecordedOutcome, queue: _Queue) -> Outcome:
        """Return the outcome as recorded, and record it under this session's delivery tag."""
        queue.recorded.append(replace(recorded, tag=item.delivery.tag))
        if recorded.code is not None:
            if item.objection is not None and item.objection.code == recorded.code:
                # Its errors are not recorded.
                return Outcome(item.delivery, "rejected", problem=item.objection)
            extra = {"current_version": recorded.version} if recorded.version else {}
            return reject(item.delivery, recorded.code, recorded.detail, **extra)
        version = (item.outplan_id, recorded.version or 0)
        state = self._past.get(version, self._states[item.outplan_id])
        return Outcome(item.delivery, "unchanged", version=state.version, outplan=state.outplan)


def _accept(item: ParsedCommand, event: Event, *, duplicate: bool = False) -> Outcome:
    return Outcome(item.delivery, "accepted", duplicate, event, event.version, event.data)


def _record_outcome(
    item: ParsedCommand, decision: Refusal | Unchanged, state: State | None = None
) -> RecordedOutcome:
    fingerprint, tag = item.delivery.fingerprint, item.delivery.tag
    if isinstance(decision, Unchanged):
        return RecordedOutcome(fingerprint, tag, version=state.version if state else None)
    return RecordedOutcome(
        fingerprint, tag, decision.code, decision.detail, decision.current_version
    )

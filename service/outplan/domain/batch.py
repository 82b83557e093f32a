"""Judging a batch, in order and in memory: what it comes to, and what is to be stored of it."""

from dataclasses import replace

from outplan.contract.amqp import Delivery
from outplan.contract.messages import Event, Problem
from outplan.domain.codec import Outcome, Request
from outplan.domain.decider import Refusal, State, Unchanged, decide, evolve, outplan_id
from outplan.domain.dedup import Ledger
from outplan.domain.records import Record, Snapshot, Verdict
from outplan.errors import Unprocessable

# A delivery that was read: a command, or what is wrong with it.
Parsed = Request | tuple[Delivery, Problem]


class Fold:
    """A batch's judgement in order: each command sees what those before it have changed."""

    def __init__(self, known: Snapshot, ledgers: dict[str, Ledger], now: str) -> None:
        self._states: dict[str, State] = dict(known.states)
        self._past = known.past
        self._records = dict(known.records)
        self._ledgers = ledgers
        self._now = now
        self.decided: list[Record] = []
        self.accepted: list[Request] = []
        self.verdicts: list[tuple[Request, Verdict]] = []

    def judge(self, item: Parsed) -> Outcome:
        """The outcome of one delivery, its effect taken into account for the next."""
        if not isinstance(item, Request):
            return rejected(*item)
        # Before the record: another sending of it may have been accepted after this one was judged.
        if verdict := self._ledgers[item.delivery.queue].recall(item.delivery):
            return self._without_trace(item, verdict)
        record = self._records.get(item.command_id)
        if record is not None and record.digest == item.digest:
            return _accepted(item.delivery, record.event, duplicate=True)
        if record is not None:
            detail = "this message_id was accepted before with other content"
            reused = Refusal("message_id_reused", detail)
            return self._without_trace(item, _verdict(item.delivery, reused))
        return self._decide(item)

    def _decide(self, request: Request) -> Outcome:
        id_ = outplan_id(request.command, request.command_id)
        state = self._states.get(id_)
        try:
            decision = decide(state, request.command, request.command_id, self._now)
            if isinstance(decision, Event):
                self._states[id_] = evolve(state, decision)
        except Exception as error:  # A bug, and whose command it is must be found out.
            raise Unprocessable(f"decide failed: {error!r}") from error
        if not isinstance(decision, Event):
            return self._without_trace(request, _verdict(request.delivery, decision, state))
        record = Record(decision, request.digest)
        self._records[request.command_id] = record
        self.decided.append(record)
        self.accepted.append(request)
        return _accepted(request.delivery, decision)

    def _without_trace(self, request: Request, verdict: Verdict) -> Outcome:
        self.verdicts.append((request, replace(verdict, tag=request.delivery.tag)))
        if verdict.code is None:
            id_ = outplan_id(request.command, request.command_id)
            state = self._past.get((id_, verdict.version or 0), self._states[id_])
            return Outcome(
                request.delivery, "unchanged", version=state.version, outplan=state.outplan
            )
        extra = {"current_version": verdict.version} if verdict.version else {}
        problem = Problem.of(verdict.code, verdict.detail, request.command_id, **extra)
        return rejected(request.delivery, problem)


def _accepted(delivery: Delivery, event: Event, duplicate: bool = False) -> Outcome:
    return Outcome(
        delivery,
        "accepted",
        duplicate=duplicate,
        event=event,
        version=event.version,
        outplan=event.data,
    )


def rejected(delivery: Delivery, problem: Problem) -> Outcome:
    """What becomes of a delivery that has a problem."""
    return Outcome(delivery, "rejected", problem=problem)


def _verdict(
    delivery: Delivery, decision: Refusal | Unchanged, state: State | None = None
) -> Verdict:
    message, tag = delivery.fingerprint, delivery.tag
    if isinstance(decision, Unchanged):
        return Verdict(message, tag, version=state.version if state else None)
    return Verdict(message, tag, decision.code, decision.detail, decision.current_version)

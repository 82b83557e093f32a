"""Hostile messages through decode, validate and decide, and what is demanded of each outcome."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from outplan.contract import schemas
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import PROBLEM_CODES
from outplan.contract.topology import PREFETCH, topology
from outplan.domain.batch import Batch
from outplan.domain.codec import Outcome, ParsedCommand, parse, publications
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.records import Record, Snapshot
from outplan.mongodb.documents import event_document, outplan_document, record_of, state_of
from outplan.mongodb.validators import EVENTS, OUTPLANS
from outplan.rabbitmq.frames import (
    Malformed,
    WireProperties,
    read_content_header,
    write_publication,
)
from tests.faults.fuzz import oracle
from tests.faults.fuzz.frame_checks import faults_on_the_wire
from tests.faults.fuzz.mutants import Mutant
from tests.faults.fuzz.report import Report
from tests.support.contract_rules import Command

QUEUE: Final = "outplan.commands"
FRAME_MAX: Final = 131_072
_OUTPLANS: Final = 512
_EVENTS: Final = 2_048
# The other implementation of JSON Schema takes milliseconds, and minutes over the largest bodies.
_COMPARED: Final = 1_000
_COMPARABLE: Final = 20_000


@dataclass(slots=True)
class _Case:
    """One message on its way; ``spent`` is the service's CPU time for it, in nanoseconds."""

    mutant: Mutant
    delivery: Delivery
    parsed: ParsedCommand | Outcome
    spent: int
    outcome: Outcome | None = None
    sent: list[tuple[Publication, bytes]] = field(default_factory=list)


class Court:
    """Judges mutants as a worker would, with what it has stored so far, and judges the judging.

    Unless it is to ``keep_all``, it keeps some outplans and events only, so that its own memory
    does not grow.
    """

    def __init__(self, *, keep_all: bool = False) -> None:
        self._keep_all = keep_all
        self.report = Report()
        self._layout = topology()
        self._window = DeduplicationWindow((), PREFETCH)
        self._outplans: dict[str, dict[str, Any]] = {}
        self._events: dict[str, dict[str, Any]] = {}
        self._commands: dict[str, Command] = {}
        self._tag = 0

    def try_all(self, mutants: list[Mutant]) -> list[Outcome]:
        """One batch of messages; what is wrong with what becomes of them goes to the report."""
        cases = [case for mutant in mutants if (case := self._opened(mutant)) is not None]
        requests = [c.parsed for c in cases if isinstance(c.parsed, ParsedCommand)]
        batch = Batch(self._known(requests), {QUEUE: self._window}, self._now())
        for case in cases:
            with self._guarded(case.mutant):
                self._judge(batch, case)
                self._check(case, batch)
        self._keep(batch)
        return [case.outcome for case in cases if case.outcome is not None]

    def time(self, mutant: Mutant) -> float:
        """The CPU seconds that one message takes by itself; nothing is stored or reported."""
        before = dict(self._outplans), dict(self._events), dict(self._commands), self.report
        self.report = Report()
        case = self._opened(mutant)
        spent = 0
        if case is not None:
            requests = [case.parsed] if isinstance(case.parsed, ParsedCommand) else []
            self._judge(Batch(self._known(requests), {QUEUE: self._window}, self._now()), case)
            spent = case.spent
        self._outplans, self._events, self._commands, self.report = before
        return spent / 1e9

    # --- the service's part, timed ---

    def _opened(self, mutant: Mutant) -> _Case | None:
        self._tag += 1
        with self._guarded(mutant):
            since = time.thread_time_ns()
            try:
                properties = read_content_header(mutant.header)
            except Malformed:
                # The broker reads these bytes before any worker does, and refuses them.
                self.report.malformed += 1
                return None
            delivery = Delivery(
                self._tag, QUEUE, QUEUE, mutant.routing_key, mutant.redelivered, properties,
                mutant.body,
            )  # fmt: skip
            parsed = parse(delivery)
            return _Case(mutant, delivery, parsed, time.thread_time_ns() - since)
        return None

    def _judge(self, batch: Batch, case: _Case) -> None:
        since = time.thread_time_ns()
        outcome = batch.decide(case.parsed)
        _ = case.delivery.delivery_count
        found = publications(outcome, self._layout, self._now())
        case.sent = [(each, write_publication(1, each, FRAME_MAX, "guest")) for each in found]
        case.spent += time.thread_time_ns() - since
        case.outcome = outcome
        self.report.times.add(case.spent, case.mutant)

    def _known(self, requests: list[ParsedCommand]) -> Snapshot:
        """What the store would have read, through the forms that it keeps."""
        ids = {request.outplan_id for request in requests}
        events = {request.command_id for request in requests} & self._events.keys()
        return Snapshot(
            {id_: state_of(dict(self._outplans[id_])) for id_ in ids & self._outplans.keys()},
            {id_: record_of(self._events[id_]) for id_ in events},
        )

    def _now(self) -> str:
        """A clock that is as often behind as ahead."""
        return f"2026-11-23 06:10:{self._tag % 60:02d}.123456"

    def _keep(self, batch: Batch) -> None:
        for outcomes in batch.outcomes_to_record().values():
            self._window.commit(outcomes)
        if self._keep_all:
            return
        for kept, most in ((self._outplans, _OUTPLANS), (self._events, _EVENTS)):
            for key in list(kept)[: max(0, len(kept) - most)]:
                del kept[key]
                self._commands.pop(key, None)

    # --- what is demanded ---

    @contextmanager
    def _guarded(self, mutant: Mutant) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Whatever it is, there must be none.
            self._fault(f"{type(error).__name__}: {error}", mutant)

    def _fault(self, what: str, mutant: Mutant) -> None:
        self.report.faults.append(
            f"{what[:300]}; {mutant.kind}; key {mutant.routing_key[:60]!a}, "
            f"header {mutant.header[:300].hex()}, body {mutant.body[:600]!r}"
        )

    def _check(self, case: _Case, batch: Batch) -> None:
        outcome = case.outcome
        assert outcome is not None
        code = outcome.problem.code if outcome.problem else outcome.status
        self._count(case, "duplicate" if outcome.duplicate else code)
        expected, given = self._expected(case)
        assert expected.outcome in (None, code), f"{code}, not {expected.outcome}"
        assert expected.outcome is None or outcome.duplicate is expected.duplicate, "a duplicate?"
        assert (outcome.event is not None) is (outcome.status == "accepted")
        assert (outcome.problem is not None) is (outcome.status == "rejected")
        assert outcome.problem is None or outcome.problem.code in PROBLEM_CODES
        if outcome.event is not None and not outcome.duplicate:
            self._check_event(batch.records[-1], expected, given)
        for fault in faults_on_the_wire(outcome, case.sent, FRAME_MAX):
            self._fault(fault, case.mutant)

    def _count(self, case: _Case, outcome: str) -> None:
        self.report.count += 1
        self.report.outcomes[outcome] += 1
        self.report.kinds[case.mutant.kind] += 1

    def _expected(self, case: _Case) -> tuple[oracle.Expected, Command | None]:
        delivery, properties = case.delivery, case.delivery.properties
        assert isinstance(properties, WireProperties)
        raw_id = properties.raw[slice(*properties.spans.get("message_id", (0, 0)))][1:]
        if code := oracle.form(properties, raw_id, delivery.routing_key, delivery.body):
            return oracle.Expected(code), None
        try:
            body = oracle.strict_object(delivery.body)
        except oracle.NotJson:
            return oracle.Expected("invalid_json"), None
        except oracle.TooDeep:
            return oracle.Expected(None), None
        if not self._fits(delivery.command_name, body, len(delivery.body)):
            return oracle.Expected("invalid_command"), None
        return self._ruled(delivery)

    def _ruled(self, delivery: Delivery) -> tuple[oracle.Expected, Command]:
        id_ = delivery.command_id or ""
        parsed = orjson.loads(delivery.body)
        target = parsed["id"].lower() if "id" in parsed else None
        stored = self._outplans.get(target) if target else None
        version = stored["version"] if stored else 0
        before = {"id": target, **stored} if stored else None
        if before is not None:
            del before["_id"], before["version"]
        given, expected = oracle.judged(delivery.command_name, delivery.body, before, version)
        if earlier := self._commands.get(id_):
            again = oracle.same(earlier, given)
            outcome = "accepted" if again else "message_id_reused"
            return oracle.Expected(outcome, duplicate=again), given
        return expected, given

    def _fits(self, name: str, body: Any, size: int) -> bool:
        fits = schemas.is_valid(name, body)
        if self.report.count % _COMPARED == 0 and size < _COMPARABLE:
            other = oracle.other_implementation(name).is_valid(body)
            self.report.checks["fits" if fits else "does not fit"] += 1
            assert fits is other, f"the schema's implementations disagree: {fits}, {other}"
        return fits

    def _check_event(
        self, record: Record, expected: oracle.Expected, given: Command | None
    ) -> None:
        event = record.event
        before = self._outplans.get(event.data.id)
        stored, document = event_document(record), outplan_document(event)
        assert event.version == (before["version"] + 1 if before else 1), "a gap in versions"
        assert before is None or event.time > before["tm_update"], "tm_update does not grow"
        if expected.settings is not None:
            changed = {**document, **expected.settings}
            assert {**changed, "id": event.data.id} == {**document, "id": event.data.id}
        assert record_of(orjson.loads(orjson.dumps(stored))) == record
        assert state_of(dict(document)).outplan == event.data
        assert oracle.stored_form(EVENTS).is_valid(stored), "the validator refuses the event"
        assert oracle.stored_form(OUTPLANS).is_valid(document), "the validator refuses the outplan"
        self._outplans[event.data.id] = document
        self._events[event.id] = stored
        if given is not None:
            self._commands[event.id] = given

"""Run hostile messages through decode, validate and decide, and check each outcome."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from outplan.contract import schemas
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import PROBLEM_CODES
from outplan.contract.times import format_time
from outplan.contract.topology import PREFETCH, build_topology
from outplan.domain.batch import Batch
from outplan.domain.codec import Outcome, ParsedCommand, build_publications, parse
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.records import Record, Snapshot
from outplan.mongodb.documents import (
    build_event_document,
    build_outplan_document,
    parse_record,
    parse_state,
)
from outplan.mongodb.validators import EVENTS, OUTPLANS
from outplan.rabbitmq.frames import (
    Malformed,
    WireProperties,
    read_content_header,
    write_publication,
)
from tests.faults.fuzz import oracle
from tests.faults.fuzz.frame_checks import check_frames
from tests.faults.fuzz.mutants import Mutant
from tests.faults.fuzz.report import Report
from tests.support.contract_rules import Command
from tests.support.raw_message import RawMessage
from tests.support.wire import FRAME_MAX, split_frames

QUEUE: Final = "outplan.commands"
_MOST_OUTPLANS: Final = 512
_MOST_EVENTS: Final = 2_048
# The second JSON Schema implementation takes milliseconds, and minutes for the largest bodies.
_CROSS_CHECK_EVERY: Final = 1_000
_CROSS_CHECK_BYTES: Final = 20_000


@dataclass(slots=True)
class _Case:
    """A message on its way; ``nanoseconds`` is the service's CPU time for it."""

    mutant: Mutant
    delivery: Delivery
    parsed: ParsedCommand | Outcome
    nanoseconds: int
    outcome: Outcome | None = None
    sent: list[tuple[Publication, bytes]] = field(default_factory=list)


class FuzzRunner:
    """Handle mutants as a worker would, without broker and store, and check every outcome.

    Failures go to ``report``. With ``remember_all`` the runner stores every outplan and event;
    without it, a limited number, so that memory does not grow. ``copies`` has the rejected copies
    of the last batch, each with its mutant.
    """

    def __init__(self, *, remember_all: bool = False) -> None:
        self._remember_all = remember_all
        self.report = Report()
        self.copies: list[tuple[Mutant, RawMessage]] = []
        self._layout = build_topology()
        self._window = DeduplicationWindow((), PREFETCH)
        self._outplans: dict[str, dict[str, Any]] = {}
        self._events: dict[str, dict[str, Any]] = {}
        self._commands: dict[str, Command] = {}
        self._tag = 0

    def run_batch(self, mutants: list[Mutant]) -> list[Outcome]:
        """Handle one batch and return its outcomes; malformed messages have none."""
        cases = [case for mutant in mutants if (case := self._decode(mutant)) is not None]
        requests = [c.parsed for c in cases if isinstance(c.parsed, ParsedCommand)]
        batch = Batch(
            self._load_snapshot(requests), {QUEUE: self._window}, format_time(self._now())
        )
        self.copies = []
        for case in cases:
            with self._report_exceptions(case.mutant):
                self._judge(batch, case)
                self._check_outcome(case, batch)
                self.copies += _list_copies(case)
        self._remember(batch)
        return [case.outcome for case in cases if case.outcome is not None]

    def measure_cpu(self, mutant: Mutant) -> float:
        """Return the CPU seconds that one message takes; store and report nothing."""
        before = dict(self._outplans), dict(self._events), dict(self._commands), self.report
        self.report = Report()
        case = self._decode(mutant)
        nanoseconds = 0
        if case is not None:
            requests = [case.parsed] if isinstance(case.parsed, ParsedCommand) else []
            self._judge(
                Batch(
                    self._load_snapshot(requests), {QUEUE: self._window}, format_time(self._now())
                ),
                case,
            )
            nanoseconds = case.nanoseconds
        self._outplans, self._events, self._commands, self.report = before
        return nanoseconds / 1e9

    # --- the service's part, timed ---

    def _decode(self, mutant: Mutant) -> _Case | None:
        self._tag += 1
        with self._report_exceptions(mutant):
            since = time.thread_time_ns()
            try:
                properties = read_content_header(mutant.header)
            except Malformed:
                # The broker refuses such a header, so no worker sees it.
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
        found = build_publications(outcome, self._layout, self._now())
        case.sent = [(each, write_publication(1, each, FRAME_MAX, "guest")) for each in found]
        case.nanoseconds += time.thread_time_ns() - since
        case.outcome = outcome
        self.report.times.add(case.nanoseconds, case.mutant)

    def _load_snapshot(self, requests: list[ParsedCommand]) -> Snapshot:
        """Build the snapshot that the store would load, through the documents it keeps."""
        ids = {request.outplan_id for request in requests}
        events = {request.command_id for request in requests} & self._events.keys()
        return Snapshot(
            {id_: parse_state(dict(self._outplans[id_])) for id_ in ids & self._outplans.keys()},
            {id_: parse_record(self._events[id_]) for id_ in events},
        )

    def _now(self) -> datetime:
        """Return a time that goes back as often as forward."""
        return datetime(2026, 11, 23, 6, 10, self._tag % 60, 123456, tzinfo=UTC)

    def _remember(self, batch: Batch) -> None:
        for outcomes in batch.list_outcomes_to_record().values():
            self._window.commit(outcomes)
        if self._remember_all:
            return
        for remembered, most in ((self._outplans, _MOST_OUTPLANS), (self._events, _MOST_EVENTS)):
            for key in list(remembered)[: max(0, len(remembered) - most)]:
                del remembered[key]
                self._commands.pop(key, None)

    # --- the checks ---

    @contextmanager
    def _report_exceptions(self, mutant: Mutant) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # The service must raise none.
            self._add_failure(f"{type(error).__name__}: {error}", mutant)

    def _add_failure(self, what: str, mutant: Mutant) -> None:
        self.report.failures.append(
            f"{what[:300]}; {mutant.kind}; key {mutant.routing_key[:60]!a}, "
            f"header {mutant.header[:300].hex()}, body {mutant.body[:600]!r}"
        )

    def _check_outcome(self, case: _Case, batch: Batch) -> None:
        outcome = case.outcome
        assert outcome is not None
        code = outcome.problem.code if outcome.problem else outcome.status
        self._count(case, "duplicate" if outcome.duplicate else code)
        expected, command = self._predict(case)
        assert expected.outcome in (None, code), f"{code}, not {expected.outcome}"
        assert expected.outcome is None or outcome.duplicate is expected.duplicate, (
            f"duplicate is {outcome.duplicate}"
        )
        assert (outcome.event is not None) is (outcome.status == "accepted")
        assert (outcome.problem is not None) is (outcome.status == "rejected")
        assert outcome.problem is None or outcome.problem.code in PROBLEM_CODES
        if outcome.event is not None and not outcome.duplicate:
            self._check_event(batch.records[-1], expected, command)
        for failure in check_frames(outcome, case.sent, FRAME_MAX):
            self._add_failure(failure, case.mutant)

    def _count(self, case: _Case, outcome: str) -> None:
        self.report.count += 1
        self.report.outcomes[outcome] += 1
        self.report.kinds[case.mutant.kind] += 1

    def _predict(self, case: _Case) -> tuple[oracle.Prediction, Command | None]:
        delivery, properties = case.delivery, case.delivery.properties
        assert isinstance(properties, WireProperties)
        raw_id = properties.raw[slice(*properties.spans.get("message_id", (0, 0)))][1:]
        if code := oracle.check_form(properties, raw_id, delivery.routing_key, delivery.body):
            return oracle.Prediction(code), None
        try:
            body = oracle.parse_object(delivery.body)
        except oracle.NotJsonError:
            return oracle.Prediction("invalid_json"), None
        except oracle.TooDeepError:
            return oracle.Prediction(None), None
        if not self._check_schema(delivery.command_name, body, len(delivery.body)):
            return oracle.Prediction("invalid_command"), None
        return self._predict_ruling(delivery)

    def _predict_ruling(self, delivery: Delivery) -> tuple[oracle.Prediction, Command]:
        id_ = delivery.command_id or ""
        parsed = orjson.loads(delivery.body)
        target = parsed["id"].lower() if "id" in parsed else None
        stored = self._outplans.get(target) if target else None
        version = stored["version"] if stored else 0
        before = {"id": target, **stored} if stored else None
        if before is not None:
            del before["_id"], before["version"]
        command, expected = oracle.predict_ruling(
            delivery.command_name, delivery.body, before, version
        )
        if recorded := self._window.recall(delivery):
            # Nothing tells this resend from a redelivery, so it has the recorded outcome.
            return oracle.Prediction(recorded.code or "unchanged"), command
        earlier = self._commands.get(id_)
        if earlier == command:
            return oracle.Prediction("accepted", duplicate=True), command
        assert isinstance(delivery.properties, WireProperties)
        if oracle.has_flawed_properties(delivery.properties):
            return oracle.Prediction("invalid_properties"), command
        return oracle.Prediction("message_id_reused") if earlier else expected, command

    def _check_schema(self, name: str, body: Any, size: int) -> bool:
        is_valid = schemas.is_valid(name, body)
        if self.report.count % _CROSS_CHECK_EVERY == 0 and size < _CROSS_CHECK_BYTES:
            other = oracle.independent_validator(name).is_valid(body)
            self.report.checks["valid" if is_valid else "invalid"] += 1
            assert is_valid is other, f"the schema validators disagree: {is_valid}, {other}"
        return is_valid

    def _check_event(
        self, record: Record, expected: oracle.Prediction, command: Command | None
    ) -> None:
        event = record.event
        before = self._outplans.get(event.data.id)
        stored, document = build_event_document(record), build_outplan_document(event)
        assert event.version == (before["version"] + 1 if before else 1), "a gap in versions"
        assert before is None or event.time > before["tm_update"], "tm_update does not grow"
        if expected.fields is not None:
            changed = {**document, **expected.fields}
            assert {**changed, "id": event.data.id} == {**document, "id": event.data.id}
        assert parse_record(orjson.loads(orjson.dumps(stored))) == record
        assert parse_state(dict(document)).outplan == event.data
        assert oracle.mongodb_validator(EVENTS).is_valid(stored), "the validator refuses the event"
        assert oracle.mongodb_validator(OUTPLANS).is_valid(document), (
            "the validator refuses the outplan"
        )
        self._outplans[event.data.id] = document
        self._events[event.id] = stored
        if command is not None:
            self._commands[event.id] = command


def _list_copies(case: _Case) -> Iterator[tuple[Mutant, RawMessage]]:
    for publication, data in case.sent:
        if publication.original is not None:
            header = split_frames(data)[1][2]
            yield case.mutant, RawMessage(publication.routing_key, header, publication.body)

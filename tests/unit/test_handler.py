"""Handle batches: claims, commits of unknown result, attempts at poison messages."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from outplan.contract.amqp import Delivery
from outplan.domain import batch as batch_module
from outplan.domain.codec import Outcome, ParsedCommand
from outplan.domain.poison import MAX_ATTEMPTS
from outplan.domain.records import Attempt
from outplan.errors import (
    BrokerUnavailable,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    Unprocessable,
)
from outplan.testing.memory.registry import MemoryRegistry
from outplan.worker import handler as handler_module
from outplan.worker.handler import Handler
from tests.support.builders import (
    QUEUE,
    create,
    delete,
    make_conflict_pair,
    read_code,
    redeliver,
    update,
)
from tests.support.memory import Died, FaultyStore
from tests.support.samples import (
    BEFORE,
    ID,
    LATER,
    NOW,
    delivery,
    state,
)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def confirm() -> None:
    """Confirm ownership at once."""


def make_handler(
    memory: FaultyStore,
    *,
    worker: str = "me",
    clock: Callable[[], datetime] = lambda: moment(LATER),
    confirm_ownership: Callable[[], Awaitable[None]] = confirm,
) -> tuple[Handler, list[BaseException]]:
    """Make a handler, and the list of the errors that it retries."""
    errors: list[BaseException] = []
    handler = Handler(
        store=memory,
        registry=MemoryRegistry(),
        worker=worker,
        generation=1,
        window=100,
        clock=clock,
        on_error=errors.append,
        confirm_ownership=confirm_ownership,
    )
    return handler, errors


def make_batch(*requests: ParsedCommand) -> list[Delivery]:
    return [each.delivery for each in requests]


async def split_after_lost_commit(
    handler: Handler, memory: FaultyStore, batch: list[Delivery]
) -> list[Outcome]:
    """Handle a batch whose commit is lost and then conflicts; return the outcomes one by one."""
    commits = memory.commits

    async def conflict_after_the_commit() -> None:
        while memory.commits == commits:
            await asyncio.sleep(0)
        memory.conflicts = 8

    conflicting = asyncio.create_task(conflict_after_the_commit())
    with pytest.raises(Unprocessable):
        await handler.handle(batch)
    await conflicting
    alone = []
    for each in batch:
        alone.append(await handler.handle_alone(each))
        handler.end_attempt(each)
    return alone


async def test_a_batch_without_a_valid_command_does_not_touch_the_store() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    outcomes = await handler.handle([delivery(b""), delivery({}, "nonsense")])
    assert [read_code(o) for o in outcomes] == ["invalid_json", "unknown_command"]
    assert (memory.claims, memory.commits) == ([], 0)


async def test_outcomes_have_the_order_of_their_deliveries() -> None:
    handler, _ = make_handler(FaultyStore())
    bad = delivery(b"{", tag=2)
    deliveries = [create("c-1", tag=1).delivery, bad, delete("c-3", tag=3).delivery]
    outcomes = await handler.handle(deliveries)
    assert [o.delivery for o in outcomes] == deliveries
    assert [read_code(o) for o in outcomes] == ["accepted", "invalid_json", "accepted"]


async def test_a_queue_is_claimed_once_at_its_first_command() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    await handler.handle(make_batch(create("c-1")))
    await handler.handle(make_batch(create("c-2"), create("c-3", queue="another")))
    assert memory.claims == ["me:outplan.commands", "me:another"]
    assert {fence.epoch for fence in memory.fences.values()} == {1}


async def test_each_queue_keeps_its_own_recorded_outcomes() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    there = create("c-2", tag=2, queue="another")
    await handler.handle(make_batch(create("c-1"), there))
    kept = memory.fences["another"].outcomes
    assert [o.fingerprint for o in kept] == [there.delivery.fingerprint]
    assert memory.fences[QUEUE].outcomes == ()


async def test_after_an_unknown_commit_an_accepted_command_is_a_duplicate() -> None:
    memory = FaultyStore(lose_next=True)
    handler, errors = make_handler(memory)
    [outcome] = await handler.handle(make_batch(create("c-1")))
    assert (outcome.status, outcome.duplicate, outcome.version) == ("accepted", True, 1)
    assert [type(error) for error in errors] == [StoreUnavailable]
    assert len(memory.records) == 1


async def test_after_an_unknown_commit_an_unchanged_command_has_the_same_outcome() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    [created] = await handler.handle(make_batch(create("c-1")))
    assert created.outplan is not None
    memory.lose_next = True
    same, other = (
        update("same", tag=2, name=created.outplan.name),
        update("other", tag=3, name="other"),
    )
    outcomes = await handler.handle(make_batch(same, other))
    assert [(o.status, o.version) for o in outcomes] == [("unchanged", 1), ("accepted", 2)]
    assert outcomes[0].outplan == created.outplan


async def test_after_an_unknown_commit_an_earlier_rejection_stands() -> None:
    memory = FaultyStore(states={ID: state(1)}, lose_next=True)
    handler, _ = make_handler(memory)
    early, late = make_conflict_pair()
    outcomes = await handler.handle(make_batch(early, late))
    assert [read_code(o) for o in outcomes] == ["version_conflict", "accepted"]
    assert memory.states[ID].outplan.name == "late"
    assert list(memory.records) == ["late"]
    kept = memory.fences[QUEUE].outcomes
    assert [o.fingerprint for o in kept] == [early.delivery.fingerprint]


async def test_after_a_failed_commit_the_batch_is_decided_anew() -> None:
    memory = FaultyStore(states={ID: state(1)}, fail_next=True)
    handler, errors = make_handler(memory)
    outcomes = await handler.handle(make_batch(*make_conflict_pair()))
    assert [(read_code(o), o.duplicate) for o in outcomes] == [
        ("version_conflict", False), ("accepted", False),
    ]  # fmt: skip
    assert [type(error) for error in errors] == [StoreUnavailable]


async def test_after_a_failed_commit_a_resent_command_is_decided_anew() -> None:
    memory = FaultyStore(states={ID: state(1)})
    early, late = make_conflict_pair()
    handler, _ = make_handler(memory)
    await handler.handle(make_batch(early, late))
    # Everything is acked, the worker restarts, and the sender resends the rejected command.
    memory.fail_next = True
    handler, _ = make_handler(memory)
    [outcome] = await handler.handle(make_batch(early))
    assert (read_code(outcome), outcome.version) == ("accepted", 3)


async def test_the_next_session_inherits_recorded_outcomes() -> None:
    memory = FaultyStore(states={ID: state(1)})
    early, late = make_conflict_pair()
    handler, _ = make_handler(memory)
    await handler.handle(make_batch(early, late))
    after_the_crash, _ = make_handler(memory)
    again = await after_the_crash.handle(make_batch(redeliver(early, 1), redeliver(late, 2)))
    assert [(read_code(o), o.duplicate) for o in again] == [
        ("version_conflict", False), ("accepted", True),
    ]  # fmt: skip
    assert memory.states[ID].version == 2


async def test_the_clock_is_read_once_for_each_attempt() -> None:
    memory = FaultyStore()
    times = iter([moment(NOW), moment(BEFORE)])
    handler, _ = make_handler(memory, clock=lambda: next(times))
    [first] = await handler.handle(make_batch(create("c-1")))
    [second] = await handler.handle(make_batch(update("c-2", tag=2, name="x")))
    assert first.event is not None
    assert second.event is not None
    assert (first.event.time, second.event.time) == (NOW, LATER)


# --- attempts ----------------------------------------------------------------------------------


async def die_while_handling(memory: FaultyStore, sent: Delivery) -> None:
    """End a worker in the middle of an attempt, so that nothing is stored or acked."""
    handler, _ = make_handler(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await handler.handle_alone(sent)


async def test_an_attempt_is_recorded_before_the_command_is_handled() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await handler.handle_alone(create("c-1").delivery)
    assert [attempt.number for attempt in memory.attempts] == [1]
    assert memory.commits == 0


async def test_a_command_that_always_fails_is_rejected_after_its_attempts() -> None:
    memory = FaultyStore()
    handler, errors = make_handler(memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "decide", lambda *_: 1 / 0)
        outcome = await handler.handle_alone(create("c-1").delivery)
    assert read_code(outcome) == "delivery_limit"
    assert [attempt.number for attempt in memory.attempts] == [*range(1, MAX_ATTEMPTS + 1)]
    assert len(errors) == MAX_ATTEMPTS
    assert "ZeroDivisionError" in str(errors[-1])


async def test_a_session_that_ends_while_it_handles_the_message_counts_as_an_attempt() -> None:
    """The broker gives up on a worker that hangs before the worker ends."""
    memory = FaultyStore()
    await die_while_handling(memory, sent := create("c-1").delivery)
    handler, _ = make_handler(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await handler.handle_alone(sent)
    await handler.release()
    assert [attempt.number for attempt in memory.attempts] == [1, 2]


async def test_a_command_that_can_be_neither_handled_nor_looked_up_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = FaultyStore()
    handler, errors = make_handler(memory)

    async def unreadable(_: object) -> None:
        raise Unprocessable("the stored document is not an event")

    monkeypatch.setattr(memory, "transact", unreadable)
    outcome = await handler.handle_alone(create("c-1").delivery)
    assert read_code(outcome) == "delivery_limit"
    assert len(errors) == MAX_ATTEMPTS


async def test_a_recorded_outcome_stands_however_many_workers_it_ended() -> None:
    memory, sent = FaultyStore(), delete("c-1", redelivered=True).delivery
    for _ in range(MAX_ATTEMPTS + 2):
        handler, _ = make_handler(memory)
        outcome = await handler.handle_alone(sent)
    assert read_code(outcome) == "not_found"


async def test_a_single_command_is_retried_while_the_server_aborts_its_transaction() -> None:
    handler, errors = make_handler(FaultyStore(conflicts=10, conflict=StoreAborted))
    outcome = await handler.handle_alone(create("c-1").delivery)
    assert read_code(outcome) == "accepted"
    assert len(errors) >= 9


async def test_a_stored_batch_that_is_split_is_not_decided_anew() -> None:
    memory = FaultyStore({ID: state()}, lose_next=True)
    early, late = make_conflict_pair()
    idle = delete("idle", tag=0, expected_version=7)
    handler, _ = make_handler(memory)
    three = make_batch(idle, early, late)
    alone = await split_after_lost_commit(handler, memory, three)
    assert [read_code(o) for o in alone] == ["version_conflict", "version_conflict", "accepted"]
    assert alone[-1].duplicate


async def test_a_split_batch_answers_unchanged_with_the_version_of_the_stored_decision() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    [created] = await handler.handle(make_batch(create("c-1", tag=1)))
    assert created.outplan is not None
    memory.lose_next = True
    idle = delete("idle", tag=2, expected_version=7)
    same = update("same", tag=3, name=created.outplan.name)
    three = make_batch(idle, same, update("other", tag=4, name="other"))
    alone = await split_after_lost_commit(handler, memory, three)
    assert [(o.status, o.version) for o in alone[1:]] == [("unchanged", 1), ("accepted", 2)]
    assert alone[1].outplan == created.outplan


async def test_a_session_that_ends_through_no_fault_of_the_message_refunds_its_attempt() -> None:
    memory, sent = FaultyStore(), create("c-1").delivery
    for _ in range(MAX_ATTEMPTS + 1):
        handler, _ = make_handler(memory)
        outcome = await handler.handle_alone(sent)
        assert read_code(outcome) == "accepted"
        await handler.release()  # Its event could not be published.
    assert memory.attempts[-1].number == 0


async def test_a_session_refunds_only_its_own_attempts() -> None:
    memory = FaultyStore()
    await die_while_handling(memory, create("c-1").delivery)
    handler, _ = make_handler(memory)
    await handler.handle(make_batch(update("c-2", name="x")))
    await handler.release()
    assert memory.attempts == [Attempt(create("c-1").delivery.fingerprint, 1)]


async def test_a_stored_command_is_never_rejected_however_many_workers_it_ended() -> None:
    memory, sent = FaultyStore(), create("c-1").delivery
    for _ in range(MAX_ATTEMPTS + 2):
        handler, _ = make_handler(memory)
        outcome = await handler.handle_alone(sent)  # Publishing its event ends the worker.
    assert (read_code(outcome), outcome.duplicate) == ("accepted", True)


async def test_a_poison_message_is_rejected_after_its_attempts() -> None:
    memory, poison = FaultyStore(), create("c-1").delivery
    for _ in range(MAX_ATTEMPTS):
        await die_while_handling(memory, poison)
    handler, _ = make_handler(memory)
    outcome = await handler.handle_alone(poison)
    assert read_code(outcome) == "delivery_limit"
    assert outcome.problem is not None
    assert (outcome.problem.status, outcome.problem.command_id) == (500, "c-1")
    assert memory.records == {}


async def test_attempts_at_one_message_do_not_count_against_another() -> None:
    memory = FaultyStore()
    for _ in range(MAX_ATTEMPTS):
        await die_while_handling(memory, create("c-1").delivery)
    handler, _ = make_handler(memory)
    outcome = await handler.handle_alone(delete("c-2").delivery)
    assert read_code(outcome) == "not_found"
    outcome = await handler.handle_alone(create("c-3").delivery)
    assert read_code(outcome) == "accepted"


async def test_copies_of_an_accepted_command_are_all_duplicates() -> None:
    memory = FaultyStore()
    handler, _ = make_handler(memory)
    outcomes = []
    for n in range(MAX_ATTEMPTS + 1):
        sent = create("c-1", tag=n).delivery
        outcomes.append(await handler.handle_alone(sent))
        handler.end_attempt(sent)
    assert [attempt.number for attempt in memory.attempts] == [1] * (MAX_ATTEMPTS + 1)
    assert [(read_code(o), o.duplicate) for o in outcomes] == [
        ("accepted", False), *[("accepted", True)] * MAX_ATTEMPTS,
    ]  # fmt: skip


async def test_a_batch_that_always_conflicts_is_unprocessable() -> None:
    handler, errors = make_handler(FaultyStore(conflicts=1_000))
    with pytest.raises(Unprocessable, match="conflicts in a row"):
        await handler.handle(make_batch(create("c-1")))
    assert {type(error) for error in errors} == {StoreConflict}


async def test_a_batch_that_conflicts_for_a_while_is_retried() -> None:
    handler, _ = make_handler(FaultyStore(conflicts=3))
    [outcome] = await handler.handle(make_batch(create("c-1")))
    assert read_code(outcome) == "accepted"


async def test_a_claim_without_ownership_handles_nothing() -> None:
    memory = FaultyStore()

    async def lose_ownership() -> None:
        raise BrokerUnavailable("another worker has the queue and these deliveries")

    late, _ = make_handler(memory, worker="late", confirm_ownership=lose_ownership)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await late.handle(make_batch(create("c-1")))
    assert (memory.commits, memory.records) == (0, {})


async def test_a_bug_in_parsing_makes_the_batch_unprocessable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler_module, "parse", lambda _: 1 / 0)
    handler, _ = make_handler(FaultyStore())
    with pytest.raises(Unprocessable, match="ZeroDivisionError"):
        await handler.handle([create().delivery])


async def test_sessions_in_a_row_that_did_not_end_cleanly_are_counted() -> None:
    memory, redelivered = FaultyStore(), [delivery({}, redelivered=True)]
    counts = []
    for _ in range(3):
        handler, _ = make_handler(memory)
        counts.append(await handler.count_crashes(redelivered))
    assert counts == [0, 1, 2]
    await handler.release()
    handler, _ = make_handler(memory)
    assert await handler.count_crashes(redelivered) == 0

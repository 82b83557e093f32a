"""Batches through the handler: claims, attempts whose end is unknown, trials."""

import asyncio

import pytest

from outplan.contract.amqp import Delivery
from outplan.domain import batch as batch_module
from outplan.domain.codec import Request
from outplan.domain.dedup import MAX_TRIALS
from outplan.domain.records import Trial
from outplan.errors import (
    BrokerUnavailable,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    Unprocessable,
)
from outplan.worker import handler as handler_module
from outplan.worker.handler import Handler
from tests.support.builders import (
    QUEUE,
    code,
    create,
    delete,
    redelivered,
    story,
    update,
)
from tests.support.memory import Died, Memory
from tests.support.samples import (
    BEFORE,
    ID,
    LATER,
    NOW,
    delivery,
    state,
)


def handler_on(memory: Memory) -> tuple[Handler, list[BaseException]]:
    noticed: list[BaseException] = []
    return Handler(memory, "me", 100, lambda: LATER, noticed.append, confirm_ownership), noticed


async def confirm_ownership() -> None:
    """The broker has answered."""


def batch(*requests: Request) -> list[Delivery]:
    return [each.delivery for each in requests]


async def test_a_batch_of_nothing_valid_asks_the_store_for_nothing() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    outcomes = await judge.handle([delivery(b""), delivery({}, "nonsense")])
    assert [code(o) for o in outcomes] == ["invalid_json", "unknown_command"]
    assert (memory.claims, memory.commits) == ([], 0)


async def test_outcomes_stand_in_the_order_of_their_deliveries() -> None:
    judge, _ = handler_on(Memory())
    bad = delivery(b"{", tag=2)
    deliveries = [create("c-1", tag=1).delivery, bad, delete("c-3", tag=3).delivery]
    outcomes = await judge.handle(deliveries)
    assert [o.delivery for o in outcomes] == deliveries
    assert [code(o) for o in outcomes] == ["accepted", "invalid_json", "accepted"]


async def test_a_queue_is_claimed_once_and_at_its_first_command() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    await judge.handle(batch(create("c-1")))
    await judge.handle(batch(create("c-2"), create("c-3", queue="another")))
    assert memory.claims == ["me:outplan.commands", "me:another"]
    assert {fence.epoch for fence in memory.fences.values()} == {1}


async def test_each_queue_keeps_its_own_verdicts() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    there = create("c-2", tag=2, queue="another")
    await judge.handle(batch(create("c-1"), there))
    kept = memory.fences["another"].verdicts
    assert [v.message for v in kept] == [there.delivery.fingerprint]
    assert memory.fences[QUEUE].verdicts == ()


async def test_after_a_lost_commit_what_was_accepted_is_a_duplicate() -> None:
    memory = Memory(lose_next=True)
    judge, noticed = handler_on(memory)
    [outcome] = await judge.handle(batch(create("c-1")))
    assert (outcome.status, outcome.duplicate, outcome.version) == ("accepted", True, 1)
    assert [type(error) for error in noticed] == [StoreUnavailable]
    assert len(memory.records) == 1


async def test_after_a_lost_commit_what_was_unchanged_is_told_as_it_was() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    [created] = await judge.handle(batch(create("c-1")))
    assert created.outplan is not None
    memory.lose_next = True
    same, other = (
        update("same", tag=2, name=created.outplan.name),
        update("other", tag=3, name="other"),
    )
    outcomes = await judge.handle(batch(same, other))
    assert [(o.status, o.version) for o in outcomes] == [("unchanged", 1), ("accepted", 2)]
    assert outcomes[0].outplan == created.outplan


async def test_after_a_lost_commit_an_early_refusal_stands() -> None:
    memory = Memory(states={ID: state(1)}, lose_next=True)
    judge, _ = handler_on(memory)
    early, late = story()
    outcomes = await judge.handle(batch(early, late))
    assert [code(o) for o in outcomes] == ["version_conflict", "accepted"]
    assert memory.states[ID].outplan.name == "late"
    assert list(memory.records) == ["late"]
    kept = memory.fences[QUEUE].verdicts
    assert [v.message for v in kept] == [early.delivery.fingerprint]


async def test_after_an_attempt_that_stored_nothing_all_is_judged_afresh() -> None:
    memory = Memory(states={ID: state(1)}, fail_next=True)
    judge, noticed = handler_on(memory)
    outcomes = await judge.handle(batch(*story()))
    assert [(code(o), o.duplicate) for o in outcomes] == [
        ("version_conflict", False), ("accepted", False),
    ]  # fmt: skip
    assert [type(error) for error in noticed] == [StoreUnavailable]


async def test_after_an_attempt_that_stored_nothing_a_command_sent_anew_is_judged_afresh() -> None:
    memory = Memory(states={ID: state(1)})
    early, late = story()
    judge, _ = handler_on(memory)
    await judge.handle(batch(early, late))
    # All is settled, the worker starts again, and the sender sends what was refused once more.
    memory.fail_next = True
    judge, _ = handler_on(memory)
    [outcome] = await judge.handle(batch(early))
    assert (code(outcome), outcome.version) == ("accepted", 3)


async def test_a_next_session_takes_the_verdicts_over() -> None:
    memory = Memory(states={ID: state(1)})
    early, late = story()
    judge, _ = handler_on(memory)
    await judge.handle(batch(early, late))
    after_the_crash, _ = handler_on(memory)
    again = await after_the_crash.handle(batch(redelivered(early, 1), redelivered(late, 2)))
    assert [(code(o), o.duplicate) for o in again] == [
        ("version_conflict", False), ("accepted", True),
    ]  # fmt: skip
    assert memory.states[ID].version == 2


async def test_the_clock_is_read_once_for_each_attempt() -> None:
    memory = Memory()
    times = iter([NOW, BEFORE])
    judge = Handler(memory, "me", 100, lambda: next(times), lambda _: None, confirm_ownership)
    [first] = await judge.handle(batch(create("c-1")))
    [second] = await judge.handle(batch(update("c-2", tag=2, name="x")))
    assert first.event is not None
    assert second.event is not None
    assert (first.event.time, second.event.time) == (NOW, LATER)


# --- trials ------------------------------------------------------------------------------------


async def died(memory: Memory, sent: Delivery) -> None:
    """A worker that ends in the middle of its trial, so that nothing of it is settled."""
    judge, _ = handler_on(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await judge.handle_alone(sent)


async def test_a_trial_is_written_down_before_the_command_is_judged() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await judge.handle_alone(create("c-1").delivery)
    assert [trial.times for trial in memory.trials] == [1]
    assert memory.commits == 0


async def test_a_command_that_fails_of_itself_is_tried_so_often_and_rejected() -> None:
    memory = Memory()
    judge, noticed = handler_on(memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "decide", lambda *_: 1 / 0)
        [outcome] = await judge.handle_alone(create("c-1").delivery)
    assert code(outcome) == "delivery_limit"
    assert [trial.times for trial in memory.trials] == [*range(1, MAX_TRIALS + 1)]
    assert len(noticed) == MAX_TRIALS
    assert "ZeroDivisionError" in str(noticed[-1])


async def test_a_session_that_ends_while_its_message_is_judged_counts() -> None:
    """Whoever hangs is given up by the broker before it ends."""
    memory = Memory()
    await died(memory, sent := create("c-1").delivery)
    judge, _ = handler_on(memory)
    memory.die_next = True
    with pytest.raises(Died):
        await judge.handle_alone(sent)
    await judge.release()
    assert [trial.times for trial in memory.trials] == [1, 2]


async def test_what_can_be_neither_judged_nor_looked_up_is_given_up_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory()
    judge, noticed = handler_on(memory)

    async def unreadable(_: object) -> None:
        raise Unprocessable("what is stored is no event")

    monkeypatch.setattr(memory, "transact", unreadable)
    [outcome] = await judge.handle_alone(create("c-1").delivery)
    assert code(outcome) == "delivery_limit"
    assert len(noticed) == MAX_TRIALS


async def test_a_verdict_that_stands_is_told_however_many_workers_it_ended() -> None:
    memory, sent = Memory(), delete("c-1", redelivered=True).delivery
    for _ in range(MAX_TRIALS + 2):
        judge, _ = handler_on(memory)
        [outcome] = await judge.handle_alone(sent)
    assert code(outcome) == "not_found"


async def test_a_single_command_waits_for_a_server_that_has_no_room() -> None:
    judge, noticed = handler_on(Memory(conflicts=10, conflict=StoreAborted))
    [outcome] = await judge.handle_alone(create("c-1").delivery)
    assert code(outcome) == "accepted"
    assert len(noticed) >= 9


async def test_what_has_landed_of_a_batch_is_not_judged_afresh_when_that_is_taken_apart() -> None:
    memory = Memory({ID: state()}, lose_next=True)
    early, late = story()
    idle = delete("idle", tag=0, expected_version=7)
    judge, _ = handler_on(memory)
    three = batch(idle, early, late)

    async def conflicts_from_the_second_attempt_on() -> None:
        while memory.commits == 0:
            await asyncio.sleep(0)
        memory.conflicts = 8

    conflicting = asyncio.create_task(conflicts_from_the_second_attempt_on())
    with pytest.raises(Unprocessable):
        await judge.handle(three)
    await conflicting
    alone = []
    for each in three:
        alone += await judge.handle_alone(each)
        judge.acquit(each)
    assert [code(o) for o in alone] == ["version_conflict", "version_conflict", "accepted"]
    assert alone[-1].duplicate


async def test_a_session_that_ends_by_no_fault_of_the_message_leaves_no_trial() -> None:
    memory, sent = Memory(), create("c-1").delivery
    for _ in range(MAX_TRIALS + 1):
        judge, _ = handler_on(memory)
        [outcome] = await judge.handle_alone(sent)
        assert code(outcome) == "accepted"
        await judge.release()  # It could not be published.
    assert memory.trials[-1].times == 0


async def test_a_session_withdraws_no_trial_but_its_own() -> None:
    memory = Memory()
    await died(memory, create("c-1").delivery)
    judge, _ = handler_on(memory)
    await judge.handle(batch(update("c-2", name="x")))
    await judge.release()
    assert memory.trials == [Trial(create("c-1").delivery.fingerprint, 1)]


async def test_what_is_stored_is_never_rejected_however_many_workers_it_ended() -> None:
    memory, sent = Memory(), create("c-1").delivery
    for _ in range(MAX_TRIALS + 2):
        judge, _ = handler_on(memory)
        [outcome] = await judge.handle_alone(sent)  # and its publication is the end
    assert (code(outcome), outcome.duplicate) == ("accepted", True)


async def test_a_message_that_ended_too_many_workers_is_rejected_by_the_next() -> None:
    memory, killer = Memory(), create("c-1").delivery
    for _ in range(MAX_TRIALS):
        await died(memory, killer)
    judge, _ = handler_on(memory)
    [outcome] = await judge.handle_alone(killer)
    assert code(outcome) == "delivery_limit"
    assert outcome.problem is not None
    assert (outcome.problem.status, outcome.problem.command_id) == (500, "c-1")
    assert memory.records == {}


async def test_another_message_is_not_blamed() -> None:
    memory = Memory()
    for _ in range(MAX_TRIALS):
        await died(memory, create("c-1").delivery)
    judge, _ = handler_on(memory)
    [outcome] = await judge.handle_alone(delete("c-2").delivery)
    assert code(outcome) == "not_found"
    [outcome] = await judge.handle_alone(create("c-3").delivery)
    assert code(outcome) == "accepted"


async def test_copies_of_a_command_that_goes_through_are_all_duplicates() -> None:
    memory = Memory()
    judge, _ = handler_on(memory)
    outcomes = []
    for n in range(MAX_TRIALS + 1):
        sent = create("c-1", tag=n).delivery
        outcomes += await judge.handle_alone(sent)
        judge.acquit(sent)
    assert [trial.times for trial in memory.trials] == [1] * (MAX_TRIALS + 1)
    assert [(code(o), o.duplicate) for o in outcomes] == [
        ("accepted", False), *[("accepted", True)] * MAX_TRIALS,
    ]  # fmt: skip


async def test_a_batch_that_conflicts_for_ever_is_taken_apart() -> None:
    judge, noticed = handler_on(Memory(conflicts=1_000))
    with pytest.raises(Unprocessable, match="conflict after conflict"):
        await judge.handle(batch(create("c-1")))
    assert {type(error) for error in noticed} == {StoreConflict}


async def test_a_batch_that_conflicts_for_a_while_is_not() -> None:
    judge, _ = handler_on(Memory(conflicts=3))
    [outcome] = await judge.handle(batch(create("c-1")))
    assert code(outcome) == "accepted"


async def test_a_claim_that_came_too_late_judges_nothing() -> None:
    memory = Memory()

    async def detached() -> None:
        raise BrokerUnavailable("somebody else has the queue, and all that was in hand")

    late = Handler(memory, "late", 100, lambda: LATER, lambda _: None, detached)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await late.handle(batch(create("c-1")))
    assert (memory.commits, memory.records) == (0, {})


async def test_a_bug_in_parsing_is_found_out_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler_module, "parse", lambda _: 1 / 0)
    judge, _ = handler_on(Memory())
    with pytest.raises(Unprocessable, match="ZeroDivisionError"):
        await judge.handle([create().delivery])

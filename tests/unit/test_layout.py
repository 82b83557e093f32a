"""Test the phases of a change, and how queues are shared among workers."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from uuid import uuid4

import pytest

from outplan.domain.layout import Layout, Phase, assign, assign_shares

PREFIX = "outplan"
MAIN = "outplan.commands"


def list_phases(layout: Layout) -> list[Phase]:
    phases = [layout.phase]
    while not layout.is_steady:
        layout = layout.advance("token")
        phases.append(layout.phase)
    return phases


def steady(partitions: int) -> Layout:
    return Layout(7, "steady", partitions, partitions)


def names(*numbers: int) -> list[str]:
    return [f"{MAIN}.{n}" for n in numbers]


def list_consumed(layout: Layout) -> list[str]:
    return [queue.name for queue in layout.list_consumed(PREFIX)]


def list_awaited(layout: Layout) -> list[str]:
    return [queue.name for queue in layout.list_awaited(PREFIX)]


@pytest.mark.parametrize(
    ("before", "after", "phases"),
    [
        (1, 4, ["replay", "steady"]),
        (4, 1, ["divert", "steady"]),
        (4, 16, ["divert", "replay", "steady"]),
        (16, 4, ["divert", "replay", "steady"]),
        (4, 4, ["divert", "replay", "steady"]),
    ],
)
def test_a_change_goes_through_its_phases(before: int, after: int, phases: list[Phase]) -> None:
    assert list_phases(steady(before).start(after, "token")) == phases


def test_each_phase_raises_the_generation_and_forgets_what_was_drained() -> None:
    layout = steady(4).start(2, "first")
    drained = replace(layout, drained=frozenset(names(0, 1, 2, 3)))
    following = drained.advance("second")
    assert following == Layout(9, "replay", 2, 4, "second")
    assert following.advance("third") == Layout(10, "steady", 2, 2, "third")


@pytest.mark.parametrize(
    ("layout", "consumed", "awaited"),
    [
        (steady(1), [MAIN], []),
        (steady(3), [MAIN, *names(0, 1, 2)], []),
        (steady(3).start(2, ""), names(0, 1, 2), names(0, 1, 2)),
        (steady(2).start(4, ""), names(0, 1), names(0, 1)),
        (steady(2).start(4, "").advance(""), [MAIN], [MAIN]),
        (steady(1).start(3, ""), [MAIN], [MAIN]),
        (steady(3).start(1, ""), names(0, 1, 2), names(0, 1, 2)),
        (steady(1).retire(3, ""), [MAIN, *names(0, 1, 2)], names(0, 1, 2)),
        (steady(2).retire(4, ""), [MAIN, *names(0, 1, 2, 3)], names(2, 3)),
        (steady(1).retire(1, ""), [MAIN, *names(0)], names(0)),
    ],
)
def test_workers_consume_only_what_a_phase_allows(
    layout: Layout, consumed: list[str], awaited: list[str]
) -> None:
    assert list_consumed(layout) == consumed
    assert list_awaited(layout) == awaited


def test_an_abort_leads_back_to_the_former_number() -> None:
    aborted = steady(4).start(16, "first").abort("second")
    assert aborted == Layout(9, "divert", 4, 4, "second")
    assert list_phases(aborted) == ["divert", "replay", "steady"]


def test_a_worker_may_be_set_to_either_number_during_a_change() -> None:
    layout = steady(4).start(16, "")
    assert [layout.numbers, layout.advance("").numbers] == [{4, 16}] * 2
    assert layout.advance("").advance("").numbers == {16}
    assert steady(4).retire(16, "").numbers == {4}


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 7, 16, 20])
@pytest.mark.parametrize("queues", [1, 2, 3, 16, 256])
def test_shares_differ_by_one_at_most(queues: int, workers: int) -> None:
    owners = assign(names(*range(queues)), [f"worker {n}" for n in range(workers)])
    counts = Counter(owners.values())
    shares = [counts[f"worker {n}"] for n in range(workers)]
    assert len(owners) == queues
    assert max(shares) - min(shares) <= 1


def test_every_worker_computes_the_same_shares() -> None:
    workers = [str(uuid4()) for _ in range(5)]
    queues = names(*range(16))
    assert assign(queues, workers) == assign(queues, sorted(workers, reverse=True))
    shares = [assign_shares(steady(16), PREFIX, workers)[worker] for worker in workers]
    assert sorted(name for share in shares for name in share.own) == sorted(queues)
    for share in shares:
        assert {queue.name for queue in share.consumed} == {*share.own, MAIN}


def test_a_share_is_the_same_only_with_the_same_queues_in_the_same_generation() -> None:
    alone = assign_shares(steady(4), PREFIX, ["a"])["a"]
    shared = assign_shares(steady(4), PREFIX, ["a", "b"])["a"]
    assert alone.is_same(alone)
    assert not shared.is_same(alone)
    assert not assign_shares(replace(steady(4), generation=8), PREFIX, ["a"])["a"].is_same(alone)


def test_most_queues_stay_where_they_are_when_a_worker_joins() -> None:
    queues = names(*range(16))
    moves = []
    for seed in range(200):
        workers = [f"{seed} {n}" for n in range(5)]
        assigned = [assign(queues, workers[:count]) for count in (2, 3, 4, 5)]
        for before, after in pairwise(assigned):
            moves.append(sum(before[queue] != after[queue] for queue in queues))
    # A worker that joins takes 3 to 5 of 16; a few more move to even the shares out.
    assert sum(moves) / len(moves) < 8

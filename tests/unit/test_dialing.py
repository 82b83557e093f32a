"""Test each dialing rule as a property, and the worked cases in docs/dialing.md."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outplan.client.dialing import (
    Attempt,
    Destination,
    NoAttempt,
    Status,
    Target,
    dialable,
    end_attempt,
    next_attempt,
    start_attempt,
)
from outplan.contract.messages import Address, Outplan
from tests.support import samples

PAGE = (Path(__file__).parents[2] / "docs" / "dialing.md").read_text()
AT = datetime(2026, 11, 23, 6, 10, 0, 123456, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
A, B = Address(type="tel", target="+15551234567"), Address(type="extension", target="2001")
NO_TARGET = Address.model_construct(type="tel", target="")
BLANKS: list[Destination | None] = [None, {}, NO_TARGET, {"type": "tel", "target": ""}]

fewer_examples = settings(max_examples=60, deadline=None)


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


def make_plan(*maxima: int, **fields: Any) -> Outplan:
    counts = {f"max_try_count_{index}": maximum for index, maximum in enumerate(maxima)}
    return samples.outplan(**counts, **fields)


def get_maximum(outplan: Outplan, index: int) -> int:
    maximum: int = getattr(outplan, f"max_try_count_{index}")
    return maximum


def pad_counts(*tried: int) -> tuple[int, ...]:
    return (*tried, *[0] * (5 - len(tried)))


def list_present(target: Target) -> list[int]:
    return [index for index, each in enumerate(target.destinations) if each not in BLANKS]


def list_with_tries_left(outplan: Outplan, target: Target) -> list[int]:
    """Compute the indexes of rule 3 independently of the module."""
    return [
        each
        for each in list_present(target)
        if target.try_counts[each] < get_maximum(outplan, each)
    ]


def find_attempt(outplan: Outplan | dict[str, Any], target: Target, now: datetime = AT) -> Attempt:
    answer = next_attempt(outplan, target, now)
    assert isinstance(answer, Attempt), answer
    return answer


intervals = st.just(0) | st.sampled_from([1_000, 60_000, 2_147_483_647]) | st.integers(1_000, 9_999)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.builds(
    lambda shift, zone: (AT + ms(shift)).astimezone(zone), st.integers(-20_000, 20_000), zones
)
destinations = st.lists(
    st.sampled_from([A, B, {"type": "line", "target": "1"}, *BLANKS]), max_size=5
).map(tuple)
tries = st.tuples(*[st.integers(0, 3)] * 5)
outplans = st.builds(
    lambda maxima, **fields: make_plan(*maxima, **fields),
    st.tuples(*[st.integers(0, 3)] * 5),
    try_interval=intervals,
    dial_timeout=st.integers(1_000, 600_000),
)
idle_targets = st.builds(
    Target, destinations=destinations, try_counts=tries, last_ended=st.none() | moments
)
dialable_targets = idle_targets.filter(lambda target: bool(list_present(target)))
targets = st.builds(
    Target,
    destinations=destinations,
    try_counts=tries,
    last_ended=st.none() | moments,
    last_changed=moments,
    status=st.sampled_from(["idle", "idle", "progressing", "done"]),
)


@fewer_examples
@given(outplans, st.lists(targets, max_size=8), moments)
def test_dialable_sorts_due_targets_by_their_last_change(
    outplan: Outplan, many: list[Target], now: datetime
) -> None:
    """Rule 1."""
    picked = [target for target, _ in dialable(outplan, many, now)]

    def is_due(target: Target) -> bool:
        waited = target.last_ended is None or outplan.try_interval == 0
        waited = waited or target.last_ended + ms(outplan.try_interval) <= now  # type: ignore[operator]
        return target.status == "idle" and bool(list_with_tries_left(outplan, target)) and waited

    assert sorted(map(id, picked)) == sorted(id(target) for target in many if is_due(target))
    assert all(a.last_changed <= b.last_changed for a, b in pairwise(picked))  # type: ignore[operator]


def test_a_waiting_target_does_not_hold_up_newer_targets() -> None:
    """Rule 1."""
    blocked = Target(destinations=(A,), last_ended=AT - ms(1), last_changed=AT - ms(9_000))
    newer = Target(destinations=(A,), last_changed=AT - ms(5))
    older = Target(destinations=(B,), last_changed=AT - ms(6))
    untouched = Target(destinations=(A, B))
    picked = dialable(make_plan(1), [blocked, newer, older, untouched], AT)
    assert [target for target, _ in picked] == [untouched, older, newer]


def test_targets_that_changed_at_the_same_time_keep_their_order() -> None:
    """Rule 1."""
    many = [Target(destinations=(each,), last_changed=AT) for each in (B, A, B)]
    assert [target.destinations for target, _ in dialable(make_plan(1), many, AT)] == [
        (B,),
        (A,),
        (B,),
    ]


def test_last_changed_defaults_to_last_ended() -> None:
    """Rule 1."""
    newer, older = (Target(destinations=(A,), last_ended=AT - ms(each)) for each in (1, 2))
    picked = dialable(make_plan(1, try_interval=0), [newer, older], AT)
    assert [target for target, _ in picked] == [older, newer]


@fewer_examples
@given(outplans, dialable_targets, moments)
def test_a_target_waits_exactly_the_interval(
    outplan: Outplan, target: Target, last: datetime
) -> None:
    """Rule 2."""
    outplan = outplan.model_copy(update={"max_try_count_4": 9, "try_interval": 60_000})
    target = replace(target, destinations=(*BLANKS, A))
    assert find_attempt(outplan, replace(target, last_ended=None)).not_before == AT
    tried, end = replace(target, last_ended=last), last + ms(60_000)
    assert find_attempt(outplan, tried, end - MICROSECOND).not_before == end
    assert not dialable(outplan, [tried], end - MICROSECOND)
    assert find_attempt(outplan, tried, end).not_before == end
    assert dialable(outplan, [tried], end)
    assert find_attempt(outplan, tried, end + MICROSECOND).not_before == end + MICROSECOND


@fewer_examples
@given(outplans, idle_targets)
def test_the_next_destination_is_the_lowest_index_with_tries_left(
    outplan: Outplan, target: Target
) -> None:
    """Rule 3."""
    answer, possible = next_attempt(outplan, target, AT), list_with_tries_left(outplan, target)
    if possible:
        assert isinstance(answer, Attempt)
        assert answer.index == min(possible)
        assert answer.number == target.try_counts[answer.index] + 1
        assert answer.destination is target.destinations[answer.index]
    elif list_present(target):
        assert answer is NoAttempt.ALL_EXHAUSTED
    else:
        assert answer is NoAttempt.NO_DESTINATIONS


@fewer_examples
@given(dialable_targets, st.data(), moments)
def test_the_try_count_rises_at_the_start_and_the_interval_runs_from_the_end(
    target: Target, data: st.DataObject, when: datetime
) -> None:
    """Rule 4."""
    index = data.draw(st.sampled_from(list_present(target)))
    ringing = start_attempt(target, index)
    assert ringing.try_counts[index] == target.try_counts[index] + 1
    rest = {**dict(enumerate(ringing.try_counts)), index: target.try_counts[index]}
    assert tuple(rest.values()) == target.try_counts
    assert (ringing.last_ended, ringing.status) == (target.last_ended, "progressing")
    over = end_attempt(ringing, when, success=False)
    assert over == replace(ringing, last_ended=when, last_changed=when, status="idle")
    # The interval belongs to the target: the next destination waits too.
    upcoming = next_attempt(make_plan(4, 4, 4, 4, 4, try_interval=60_000), over, when)
    assert isinstance(upcoming, NoAttempt) or upcoming.not_before == when + ms(60_000)


@fewer_examples
@given(outplans, dialable_targets, moments, st.booleans())
def test_success_makes_the_target_done_and_a_failure_makes_it_idle(
    outplan: Outplan, target: Target, when: datetime, success: bool
) -> None:
    """Rule 5."""
    ringing = start_attempt(target, list_present(target)[0])
    assert next_attempt(outplan, ringing, AT) is NoAttempt.TARGET_NOT_IDLE
    over = end_attempt(ringing, when, success)
    assert over.status == ("done" if success else "idle")
    assert (next_attempt(outplan, over, AT) is NoAttempt.TARGET_NOT_IDLE) is success


@fewer_examples
@given(dialable_targets, moments, st.integers(-9, 0), st.integers(-9, 0))
def test_zero_or_less_skips_a_destination_as_maximum_and_waits_for_nothing_as_interval(
    target: Target, now: datetime, none: int, interval: int
) -> None:
    """Rule 6."""
    first, *others = list_present(target)
    data = make_plan(9, 9, 9, 9, 9).model_dump() | {"try_interval": interval}
    assert find_attempt(data, target, now).not_before == now
    assert dialable(data, [target], now)
    skipping = next_attempt({**data, f"max_try_count_{first}": none}, target, now)
    if others:
        assert isinstance(skipping, Attempt)
        assert skipping.index == others[0]
    else:
        assert skipping is NoAttempt.ALL_EXHAUSTED


@fewer_examples
@given(dialable_targets, st.integers(1, 9))
def test_a_raised_maximum_reopens_a_target_and_a_lowered_one_skips_a_destination(
    target: Target, more: int
) -> None:
    """Rule 7."""
    used_up = make_plan(*target.try_counts)
    assert next_attempt(used_up, target, AT) is NoAttempt.ALL_EXHAUSTED
    for index in list_present(target):
        tried = target.try_counts[index]
        raised = used_up.model_copy(update={f"max_try_count_{index}": tried + more})
        assert (find_attempt(raised, target).index, find_attempt(raised, target).number) == (
            index,
            tried + 1,
        )
        lowered = raised.model_copy(update={f"max_try_count_{index}": max(0, tried - more)})
        assert next_attempt(lowered, target, AT) is NoAttempt.ALL_EXHAUSTED


@fewer_examples
@given(outplans, dialable_targets)
def test_an_attempt_carries_the_dial_timeout(outplan: Outplan, target: Target) -> None:
    """Rule 8."""
    reopened = outplan.model_copy(update={f"max_try_count_{list_present(target)[0]}": 9})
    upcoming = find_attempt(reopened, target)
    assert upcoming.dial_timeout == outplan.dial_timeout
    assert upcoming.ring_timeout / timedelta(milliseconds=1) == outplan.dial_timeout


@fewer_examples
@given(outplans, destinations, moments, st.data())
def test_a_dialer_makes_each_attempt_once_in_order_and_after_its_interval(
    outplan: Outplan, given_destinations: tuple[Destination | None, ...], now: datetime, data: Any
) -> None:
    target = Target(destinations=given_destinations)
    made: list[tuple[int, int]] = []
    while isinstance(upcoming := next_attempt(outplan, target, now), Attempt):
        if upcoming.not_before > now:
            assert not dialable(outplan, [target], upcoming.not_before - MICROSECOND)
        now = upcoming.not_before + ms(data.draw(st.integers(0, 3)))
        assert target.last_ended is None or now >= target.last_ended + ms(outplan.try_interval)
        made.append((upcoming.index, upcoming.number))
        now += ms(data.draw(st.integers(0, outplan.dial_timeout)))
        target = end_attempt(start_attempt(target, upcoming.index), now, success=False)
    assert made == [
        (index, number)
        for index in list_present(target)
        for number in range(1, get_maximum(outplan, index) + 1)
    ]


def split_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read_worked_cases() -> list[dict[str, str]]:
    section = PAGE.partition("## Worked cases")[2].partition("\n## ")[0]
    head, _, *rows = [split_cells(line) for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(head, row, strict=True)) for row in rows]


def parse_numbers(cell: str) -> tuple[int, ...]:
    return tuple(int(each) for each in cell.split(","))


def parse_destination(cell: str) -> Destination | None:
    blanks: dict[str, Destination | None] = {"None": None, "{}": {}, '""': NO_TARGET}
    return blanks[cell] if cell in blanks else Address(type="extension", target=cell)


def build_outplan(case: dict[str, str]) -> Outplan:
    deletion = {"live": {}, "deleted": {"tm_delete": samples.NOW}}[case["outplan"]]
    interval = int(case["`try_interval`"])
    return make_plan(
        *parse_numbers(case["maxima"]), try_interval=interval, dial_timeout=30_000, **deletion
    )


def build_target(case: dict[str, str]) -> Target:
    last = re.fullmatch(r"(\d+) ms ago|never", case["last ended"])
    assert last, case
    status: dict[str, Status] = {"idle": "idle", "progressing": "progressing", "done": "done"}
    return Target(
        destinations=tuple(
            parse_destination(each.strip()) for each in case["destinations"].split(",")
        ),
        try_counts=pad_counts(*parse_numbers(case["tries"])),
        last_ended=AT - ms(int(last[1])) if last[1] else None,
        status=status[case["status"]],
    )


def format_answer(answer: Attempt | NoAttempt) -> str:
    if isinstance(answer, NoAttempt):
        return f"none: {answer}"
    assert answer.ring_timeout == timedelta(seconds=30)
    wait = (answer.not_before - AT) // ms(1)
    when = f"in {wait} ms" if wait else "at once"
    return f"destination {answer.index}, attempt {answer.number}, {when}"


@pytest.mark.parametrize("case", read_worked_cases(), ids=lambda case: case["case"])
def test_next_attempt_gives_the_answer_of_each_worked_case(case: dict[str, str]) -> None:
    outplan, target = build_outplan(case), build_target(case)
    assert format_answer(next_attempt(outplan, target, AT)) == case["answer"]
    assert format_answer(next_attempt(outplan.model_dump(), target, AT)) == case["answer"]
    assert bool(dialable(outplan, [target], AT)) is case["answer"].endswith("at once")


def test_the_page_has_every_rule_and_enough_cases() -> None:
    assert re.findall(r"^(\d)\. ", PAGE, re.MULTILINE) == list("12345678")
    assert len(read_worked_cases()) >= 12


def test_the_pages_program_obeys_the_newest_event() -> None:
    saved: list[Target] = []
    calls: list[tuple[Destination, timedelta]] = []

    def call(destination: Destination, ring_timeout: timedelta) -> bool:
        calls.append((destination, ring_timeout))
        assert [each.status for each in saved] == ["progressing"]
        return True

    space: dict[str, Any] = {"save": saved.append, "call": call}
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    exec(code[1], space)
    for version, timeout in ((1, 5_000), (3, 7_000), (2, 6_000), (3, 7_000)):
        data = make_plan(1, dial_timeout=timeout).model_dump()
        space["on_event"]({"version": version, "data": data})
    space["dial_one"](samples.ID, [Target(destinations=(A,)), Target(destinations=(B,))])
    assert calls == [(A, ms(7_000))]
    assert [each.status for each in saved] == ["progressing", "done"]


@pytest.mark.parametrize(
    ("tm_delete", "deleted"),
    [
        ("9999-01-01 00:00:00.000000", False),
        ("9999-01-01T00:00:00Z", False),
        (None, False),
        ("2026-11-23 06:10:00.123456", True),
        ("2026-11-23T06:10:00.123456Z", True),
    ],
)
def test_next_attempt_reads_all_three_forms_of_tm_delete(
    tm_delete: str | None, deleted: bool
) -> None:
    data = make_plan(1).model_dump() | {"tm_delete": tm_delete, "a_field_of_tomorrow": 1}
    answer = next_attempt(data, Target(destinations=(A,)), AT)
    assert (answer is NoAttempt.OUTPLAN_DELETED) is deleted


@pytest.mark.parametrize(
    "change",
    [{"dial_timeout": 30}, {"try_interval": "60000"}, {"max_try_count_3": None}, {"tm_delete": ""}],
)
def test_an_invalid_outplan_raises_an_error(change: dict[str, Any]) -> None:
    data = make_plan(1).model_dump() | change
    with pytest.raises(ValueError, match=next(iter(change))):
        next_attempt(data, Target(destinations=(A,)), AT)
    with pytest.raises(ValueError, match=next(iter(change))):
        dialable(data, [], AT)


def test_an_event_instead_of_its_data_raises_an_error() -> None:
    event = {"id": "command-1", "version": 1, "data": make_plan(1).model_dump()}
    with pytest.raises(ValueError, match="tm_delete"):
        next_attempt(event, Target(destinations=(A,)), AT)


def test_every_function_raises_an_error_for_a_naive_time() -> None:
    naive, target = AT.replace(tzinfo=None), Target(destinations=(A,))
    deleted = make_plan(tm_delete=samples.NOW)
    with pytest.raises(ValueError, match="time zone"):
        next_attempt(deleted, target, naive)
    with pytest.raises(ValueError, match="time zone"):
        dialable(deleted, [], naive)
    with pytest.raises(ValueError, match="time zone"):
        end_attempt(start_attempt(target, 0), naive, success=True)
    with pytest.raises(ValueError, match="time zone"):
        replace(target, last_ended=naive)
    with pytest.raises(ValueError, match="time zone"):
        replace(target, last_changed=naive)


class Autumn(tzinfo):
    """A zone two hours ahead of UTC, and one hour from 3:00 on."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        winter = moment.replace(tzinfo=None, fold=0) >= datetime(2026, 10, 25, 3)
        return timedelta(hours=1 if winter else 2)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


def test_the_interval_is_elapsed_time_when_the_clocks_go_back() -> None:
    zone = Autumn()
    last = datetime(2026, 10, 25, 2, 30, tzinfo=zone)  # 0:30 in UTC
    target, hour = Target(destinations=(A,), last_ended=last), make_plan(1, try_interval=3_600_000)
    upcoming = find_attempt(hour, target, last)
    assert upcoming.not_before == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert upcoming.not_before.tzinfo is UTC
    assert dialable(hour, [target], datetime(2026, 10, 25, 3, 0, tzinfo=zone))  # 2:00 in UTC


@pytest.mark.parametrize(
    "fields",
    [
        {"destinations": (None,) * 6},
        {"try_counts": (0,) * 4},
        {"try_counts": (0,) * 6},
        {"try_counts": (0, 0, -1, 0, 0)},
        {"status": "dialing"},
    ],
)
def test_a_target_with_an_invalid_field_raises_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a target has|status is"):
        Target(**{"destinations": (A,), **fields})


@pytest.mark.parametrize("index", [-1, 1, 2, 3, 5])
def test_start_attempt_raises_an_error_for_an_absent_destination(index: int) -> None:
    with pytest.raises(ValueError, match="no destination"):
        start_attempt(Target(destinations=(A, None, NO_TARGET)), index)


def test_attempts_start_only_in_idle_targets_and_end_only_in_progressing_ones() -> None:
    idle = Target(destinations=(A,))
    ringing = start_attempt(idle, 0)
    done = end_attempt(ringing, AT, success=True)
    for each in (ringing, done):
        with pytest.raises(ValueError, match=each.status):
            start_attempt(each, 0)
    for each in (idle, done):
        with pytest.raises(ValueError, match=each.status):
            end_attempt(each, AT, success=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow(Target):
    id: str


def test_the_functions_return_the_callers_subclass() -> None:
    row = TargetRow(id="7", destinations=(A,))
    [(picked, upcoming)] = dialable(make_plan(1), [row], AT)
    assert end_attempt(start_attempt(picked, upcoming.index), AT, success=False).id == "7"

"""The rules that a dialer obeys, one property each, and the worked cases of the page on them."""

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
    ended,
    next_attempt,
    started,
)
from outplan.contract.messages import Address, Outplan
from tests.support import samples

PAGE = (Path(__file__).parents[2] / "docs" / "dialing.md").read_text()
AT = datetime(2026, 11, 23, 6, 10, 0, 123456, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
A, B = Address(type="tel", target="+15551234567"), Address(type="extension", target="2001")
NO_TARGET = Address.model_construct(type="tel", target="")
BLANKS: list[Destination | None] = [None, {}, NO_TARGET, {"type": "tel", "target": ""}]

moderately = settings(max_examples=60, deadline=None)


def ms(milliseconds: int) -> timedelta:
    return timedelta(milliseconds=milliseconds)


def plan(*maxima: int, **fields: Any) -> Outplan:
    counts = {f"max_try_count_{index}": maximum for index, maximum in enumerate(maxima)}
    return samples.outplan(**counts, **fields)


def maximum(outplan: Outplan, index: int) -> int:
    found: int = getattr(outplan, f"max_try_count_{index}")
    return found


def counts(*tried: int) -> tuple[int, ...]:
    return (*tried, *[0] * (5 - len(tried)))


def present(target: Target) -> list[int]:
    return [index for index, each in enumerate(target.destinations) if each not in BLANKS]


def open_indexes(outplan: Outplan, target: Target) -> list[int]:
    """Compute "a destination and tries left" of the rules independently."""
    return [each for each in present(target) if target.try_counts[each] < maximum(outplan, each)]


def attempt(outplan: Outplan | dict[str, Any], target: Target, now: datetime = AT) -> Attempt:
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
    lambda maxima, **fields: plan(*maxima, **fields),
    st.tuples(*[st.integers(0, 3)] * 5),
    try_interval=intervals,
    dial_timeout=st.integers(1_000, 600_000),
)
idle_targets = st.builds(
    Target, destinations=destinations, try_counts=tries, last_ended=st.none() | moments
)
dialable_targets = idle_targets.filter(lambda target: bool(present(target)))
targets = st.builds(
    Target,
    destinations=destinations,
    try_counts=tries,
    last_ended=st.none() | moments,
    last_changed=moments,
    status=st.sampled_from(["idle", "idle", "progressing", "done"]),
)


@moderately
@given(outplans, st.lists(targets, max_size=8), moments)
def test_targets_that_may_be_dialled_come_by_the_oldest_change(
    outplan: Outplan, many: list[Target], now: datetime
) -> None:
    """Rule 1."""
    picked = [target for target, _ in dialable(outplan, many, now)]

    def may(target: Target) -> bool:
        waited = target.last_ended is None or outplan.try_interval == 0
        waited = waited or target.last_ended + ms(outplan.try_interval) <= now  # type: ignore[operator]
        return target.status == "idle" and bool(open_indexes(outplan, target)) and waited

    assert sorted(map(id, picked)) == sorted(id(target) for target in many if may(target))
    assert all(a.last_changed <= b.last_changed for a, b in pairwise(picked))  # type: ignore[operator]


def test_an_older_target_whose_interval_runs_holds_up_no_newer_one() -> None:
    """Rule 1."""
    blocked = Target(destinations=(A,), last_ended=AT - ms(1), last_changed=AT - ms(9_000))
    newer = Target(destinations=(A,), last_changed=AT - ms(5))
    older = Target(destinations=(B,), last_changed=AT - ms(6))
    untouched = Target(destinations=(A, B))
    picked = dialable(plan(1), [blocked, newer, older, untouched], AT)
    assert [target for target, _ in picked] == [untouched, older, newer]


def test_targets_that_changed_at_the_same_time_keep_their_order() -> None:
    """Rule 1."""
    many = [Target(destinations=(each,), last_changed=AT) for each in (B, A, B)]
    assert [target.destinations for target, _ in dialable(plan(1), many, AT)] == [(B,), (A,), (B,)]


def test_the_end_of_the_last_attempt_stands_in_for_the_last_change() -> None:
    """Rule 1."""
    newer, older = (Target(destinations=(A,), last_ended=AT - ms(each)) for each in (1, 2))
    picked = dialable(plan(1, try_interval=0), [newer, older], AT)
    assert [target for target, _ in picked] == [older, newer]


@moderately
@given(outplans, dialable_targets, moments)
def test_a_target_waits_for_the_interval_and_not_a_microsecond_longer(
    outplan: Outplan, target: Target, last: datetime
) -> None:
    """Rule 2."""
    outplan = outplan.model_copy(update={"max_try_count_4": 9, "try_interval": 60_000})
    target = replace(target, destinations=(*BLANKS, A))
    assert attempt(outplan, replace(target, last_ended=None)).not_before == AT
    tried, end = replace(target, last_ended=last), last + ms(60_000)
    assert attempt(outplan, tried, end - MICROSECOND).not_before == end
    assert not dialable(outplan, [tried], end - MICROSECOND)
    assert attempt(outplan, tried, end).not_before == end
    assert dialable(outplan, [tried], end)
    assert attempt(outplan, tried, end + MICROSECOND).not_before == end + MICROSECOND


@moderately
@given(outplans, idle_targets)
def test_the_lowest_index_with_tries_left_is_next(outplan: Outplan, target: Target) -> None:
    """Rule 3."""
    answer, possible = next_attempt(outplan, target, AT), open_indexes(outplan, target)
    if possible:
        assert isinstance(answer, Attempt)
        assert answer.index == min(possible)
        assert answer.number == target.try_counts[answer.index] + 1
        assert answer.destination is target.destinations[answer.index]
    elif present(target):
        assert answer is NoAttempt.ALL_EXHAUSTED
    else:
        assert answer is NoAttempt.NO_DESTINATIONS


@moderately
@given(dialable_targets, st.data(), moments)
def test_an_attempt_counts_when_it_starts_and_the_target_waits_from_its_end(
    target: Target, data: st.DataObject, when: datetime
) -> None:
    """Rule 4."""
    index = data.draw(st.sampled_from(present(target)))
    ringing = started(target, index)
    assert ringing.try_counts[index] == target.try_counts[index] + 1
    rest = {**dict(enumerate(ringing.try_counts)), index: target.try_counts[index]}
    assert tuple(rest.values()) == target.try_counts
    assert (ringing.last_ended, ringing.status) == (target.last_ended, "progressing")
    over = ended(ringing, when, success=False)
    assert over == replace(ringing, last_ended=when, last_changed=when, status="idle")
    # Wherever the next attempt goes, it waits from this end.
    upcoming = next_attempt(plan(4, 4, 4, 4, 4, try_interval=60_000), over, when)
    assert isinstance(upcoming, NoAttempt) or upcoming.not_before == when + ms(60_000)


@moderately
@given(outplans, dialable_targets, moments, st.booleans())
def test_success_ends_the_target_and_anything_else_makes_it_idle(
    outplan: Outplan, target: Target, when: datetime, success: bool
) -> None:
    """Rule 5."""
    ringing = started(target, present(target)[0])
    assert next_attempt(outplan, ringing, AT) is NoAttempt.TARGET_NOT_IDLE
    over = ended(ringing, when, success)
    assert over.status == ("done" if success else "idle")
    assert (next_attempt(outplan, over, AT) is NoAttempt.TARGET_NOT_IDLE) is success


@moderately
@given(dialable_targets, moments, st.integers(-9, 0), st.integers(-9, 0))
def test_a_maximum_of_zero_or_less_skips_and_such_an_interval_means_at_once(
    target: Target, now: datetime, none: int, interval: int
) -> None:
    """Rule 6."""
    first, *others = present(target)
    data = plan(9, 9, 9, 9, 9).model_dump() | {"try_interval": interval}
    assert attempt(data, target, now).not_before == now
    assert dialable(data, [target], now)
    skipping = next_attempt({**data, f"max_try_count_{first}": none}, target, now)
    if others:
        assert isinstance(skipping, Attempt)
        assert skipping.index == others[0]
    else:
        assert skipping is NoAttempt.ALL_EXHAUSTED


@moderately
@given(dialable_targets, st.integers(1, 9))
def test_a_raised_maximum_reopens_and_a_lowered_one_only_skips(target: Target, more: int) -> None:
    """Rule 7."""
    used_up = plan(*target.try_counts)
    assert next_attempt(used_up, target, AT) is NoAttempt.ALL_EXHAUSTED
    for index in present(target):
        tried = target.try_counts[index]
        raised = used_up.model_copy(update={f"max_try_count_{index}": tried + more})
        assert (attempt(raised, target).index, attempt(raised, target).number) == (index, tried + 1)
        lowered = raised.model_copy(update={f"max_try_count_{index}": max(0, tried - more)})
        assert next_attempt(lowered, target, AT) is NoAttempt.ALL_EXHAUSTED


@moderately
@given(outplans, dialable_targets)
def test_it_rings_for_the_dial_timeout(outplan: Outplan, target: Target) -> None:
    """Rule 8."""
    reopened = outplan.model_copy(update={f"max_try_count_{present(target)[0]}": 9})
    upcoming = attempt(reopened, target)
    assert upcoming.dial_timeout == outplan.dial_timeout
    assert upcoming.ring_timeout / timedelta(milliseconds=1) == outplan.dial_timeout


@moderately
@given(outplans, destinations, moments, st.data())
def test_dialling_until_none_is_left_makes_each_attempt_once_in_order_and_in_time(
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
        target = ended(started(target, upcoming.index), now, success=False)
    assert made == [
        (index, number)
        for index in present(target)
        for number in range(1, maximum(outplan, index) + 1)
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def worked_cases() -> list[dict[str, str]]:
    section = PAGE.partition("## Worked cases")[2].partition("\n## ")[0]
    head, _, *rows = [cells(line) for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(head, row, strict=True)) for row in rows]


def numbers(cell: str) -> tuple[int, ...]:
    return tuple(int(each) for each in cell.split(","))


def of_letter(cell: str) -> Destination | None:
    blanks: dict[str, Destination | None] = {"None": None, "{}": {}, '""': NO_TARGET}
    return blanks[cell] if cell in blanks else Address(type="extension", target=cell)


def outplan_of(case: dict[str, str]) -> Outplan:
    deletion = {"live": {}, "deleted": {"tm_delete": samples.NOW}}[case["outplan"]]
    interval = int(case["`try_interval`"])
    return plan(*numbers(case["maxima"]), try_interval=interval, dial_timeout=30_000, **deletion)


def target_of(case: dict[str, str]) -> Target:
    last = re.fullmatch(r"(\d+) ms ago|never", case["last ended"])
    assert last, case
    status: dict[str, Status] = {"idle": "idle", "progressing": "progressing", "done": "done"}
    return Target(
        destinations=tuple(of_letter(each.strip()) for each in case["destinations"].split(",")),
        try_counts=counts(*numbers(case["tries"])),
        last_ended=AT - ms(int(last[1])) if last[1] else None,
        status=status[case["status"]],
    )


def spelled(answer: Attempt | NoAttempt) -> str:
    if isinstance(answer, NoAttempt):
        return f"none: {answer}"
    assert answer.ring_timeout == timedelta(seconds=30)
    wait = (answer.not_before - AT) // ms(1)
    when = f"in {wait} ms" if wait else "at once"
    return f"destination {answer.index}, attempt {answer.number}, {when}"


@pytest.mark.parametrize("case", worked_cases(), ids=lambda case: case["case"])
def test_a_worked_case_comes_out_as_the_page_says(case: dict[str, str]) -> None:
    outplan, target = outplan_of(case), target_of(case)
    assert spelled(next_attempt(outplan, target, AT)) == case["answer"]
    assert spelled(next_attempt(outplan.model_dump(), target, AT)) == case["answer"]
    assert bool(dialable(outplan, [target], AT)) is case["answer"].endswith("at once")


def test_the_page_tells_each_rule_and_has_its_cases() -> None:
    assert re.findall(r"^(\d)\. ", PAGE, re.MULTILINE) == list("12345678")
    assert len(worked_cases()) >= 12


def test_the_code_on_the_page_dials_by_the_newest_event() -> None:
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
        data = plan(1, dial_timeout=timeout).model_dump()
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
def test_all_three_forms_of_tm_delete_are_read(tm_delete: str | None, deleted: bool) -> None:
    data = plan(1).model_dump() | {"tm_delete": tm_delete, "a_field_of_tomorrow": 1}
    answer = next_attempt(data, Target(destinations=(A,)), AT)
    assert (answer is NoAttempt.OUTPLAN_DELETED) is deleted


@pytest.mark.parametrize(
    "change",
    [{"dial_timeout": 30}, {"try_interval": "60000"}, {"max_try_count_3": None}, {"tm_delete": ""}],
)
def test_what_is_no_outplan_is_refused(change: dict[str, Any]) -> None:
    data = plan(1).model_dump() | change
    with pytest.raises(ValueError, match=next(iter(change))):
        next_attempt(data, Target(destinations=(A,)), AT)
    with pytest.raises(ValueError, match=next(iter(change))):
        dialable(data, [], AT)


def test_an_event_in_the_place_of_its_data_is_refused() -> None:
    event = {"id": "command-1", "version": 1, "data": plan(1).model_dump()}
    with pytest.raises(ValueError, match="tm_delete"):
        next_attempt(event, Target(destinations=(A,)), AT)


def test_a_naive_time_is_refused_everywhere() -> None:
    naive, target = AT.replace(tzinfo=None), Target(destinations=(A,))
    deleted = plan(tm_delete=samples.NOW)
    with pytest.raises(ValueError, match="time zone"):
        next_attempt(deleted, target, naive)
    with pytest.raises(ValueError, match="time zone"):
        dialable(deleted, [], naive)
    with pytest.raises(ValueError, match="time zone"):
        ended(started(target, 0), naive, success=True)
    with pytest.raises(ValueError, match="time zone"):
        replace(target, last_ended=naive)
    with pytest.raises(ValueError, match="time zone"):
        replace(target, last_changed=naive)


class Autumn(tzinfo):
    """Two hours ahead of UTC, and one hour from 3:00 on; enough of a zone for this."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        winter = moment.replace(tzinfo=None, fold=0) >= datetime(2026, 10, 25, 3)
        return timedelta(hours=1 if winter else 2)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


def test_the_interval_is_real_time_where_the_clocks_are_set_back() -> None:
    zone = Autumn()
    last = datetime(2026, 10, 25, 2, 30, tzinfo=zone)  # 0:30 in UTC
    target, hour = Target(destinations=(A,), last_ended=last), plan(1, try_interval=3_600_000)
    upcoming = attempt(hour, target, last)
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
def test_a_target_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a target has|status is"):
        Target(**{"destinations": (A,), **fields})


@pytest.mark.parametrize("index", [-1, 1, 2, 3, 5])
def test_an_attempt_starts_only_at_a_destination(index: int) -> None:
    with pytest.raises(ValueError, match="no destination"):
        started(Target(destinations=(A, None, NO_TARGET)), index)


def test_attempts_start_only_when_idle_and_end_only_in_progress() -> None:
    idle = Target(destinations=(A,))
    ringing = started(idle, 0)
    done = ended(ringing, AT, success=True)
    for each in (ringing, done):
        with pytest.raises(ValueError, match=each.status):
            started(each, 0)
    for each in (idle, done):
        with pytest.raises(ValueError, match=each.status):
            ended(each, AT, success=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Target):
    id: str


def test_a_dialers_own_target_stays_its_own() -> None:
    row = Row(id="7", destinations=(A,))
    [(picked, upcoming)] = dialable(plan(1), [row], AT)
    assert ended(started(picked, upcoming.index), AT, success=False).id == "7"

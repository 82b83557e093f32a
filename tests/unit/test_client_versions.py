"""Test how an event stream drops repeats, reports gaps and filters events."""

from typing import Any

import pytest

from outplan.client.models import Event
from outplan.client.versions import Filter, Gap, Versions
from outplan.contract.fields import NEVER
from outplan.contract.messages import EventType
from tests.support.samples import CUSTOMER, ID, outplan

OTHER = "0192f0c1-0000-7000-8000-00000000000f"
LATER = "2026-11-23 07:00:00.000000"


def make_event(version: int, type_: EventType | None = None, id_: str = ID) -> Event:
    kind = type_ or ("outplan_created" if version == 1 else "outplan_updated")
    end = LATER if kind == "outplan_deleted" else NEVER
    body = {
        "id": f"command {version}",
        "type": kind,
        "version": version,
        "time": LATER,
        "data": {**outplan().model_dump(), "id": id_, "tm_delete": end},
    }
    return Event.model_validate(
        body if kind != "outplan_updated" else {**body, "changed": ["name"]}
    )


def judge_all(*events: Event, wanted: Filter | None = None, known: int = 0) -> list[int | Gap]:
    versions = Versions(wanted or Filter(), {ID: known} if known else {})
    items = [item for each in events for item in versions.judge(each)]
    return [item if isinstance(item, Gap) else item.version for item in items]


def test_repeats_are_dropped() -> None:
    assert judge_all(*map(make_event, [1, 1, 2, 1, 2, 3])) == [1, 2, 3]


def test_a_gap_is_reported_once_before_the_next_event() -> None:
    assert judge_all(*map(make_event, [1, 4, 5, 9])) == [1, Gap(ID, 2, 3), 4, 5, Gap(ID, 6, 8), 9]


def test_an_event_out_of_order_is_dropped_after_its_gap_was_reported() -> None:
    assert judge_all(*map(make_event, [1, 3, 2, 4])) == [1, Gap(ID, 2, 2), 3, 4]


def test_the_first_event_of_an_outplan_opens_no_gap() -> None:
    assert judge_all(*map(make_event, [7, 8])) == [7, 8]


def test_versions_that_the_caller_knows_are_repeats() -> None:
    assert judge_all(*map(make_event, [3, 5]), known=3) == [Gap(ID, 4, 4), 5]


def test_each_outplan_has_its_own_versions() -> None:
    assert judge_all(
        make_event(1), make_event(1, id_=OTHER), make_event(2), make_event(2, id_=OTHER)
    ) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["outplan_created", "outplan_deleted"], [1, 5]),
        (["outplan_updated"], [3]),
        (["outplan_deleted", "outplan_updated"], [3, Gap(ID, 4, 4), 5]),
    ],
)
def test_versions_outside_the_filter_are_no_gap(
    kinds: list[EventType], expected: list[int | Gap]
) -> None:
    events = [make_event(1), make_event(3), make_event(5, "outplan_deleted")]
    assert judge_all(*events, wanted=Filter.of(kinds, None, None)) == expected


def test_events_from_earlier_bindings_of_a_durable_queue_are_dropped() -> None:
    assert judge_all(make_event(1), wanted=Filter.of([], OTHER, None)) == []
    assert judge_all(make_event(1), wanted=Filter.of([], CUSTOMER, OTHER)) == []
    assert judge_all(make_event(1), wanted=Filter.of([], CUSTOMER.upper(), ID.upper())) == [1]


def test_a_filter_has_a_binding_key_for_each_kind() -> None:
    assert Filter().binding_keys == ("*.*.*",)
    assert Filter.of(["outplan_updated", "outplan_deleted"], CUSTOMER, ID).binding_keys == (
        f"outplan_deleted.{CUSTOMER}.{ID}",
        f"outplan_updated.{CUSTOMER}.{ID}",
    )


@pytest.mark.parametrize(
    "kinds", [["created"], "outplan_created", ["outplan_created", "outplan_*"]]
)
def test_an_unknown_kind_raises_an_error(kinds: Any) -> None:
    with pytest.raises(ValueError, match=r"kinds are among outplan_created, .*, outplan_deleted"):
        Filter.of(kinds, None, None)


@pytest.mark.parametrize("id_", ["", "me", "#", f"{ID}.*", "{" + ID + "}", 7])
def test_an_invalid_id_raises_an_error(id_: object) -> None:
    with pytest.raises(ValueError, match="customer_id is a UUID"):
        Filter.of([], id_, None)
    with pytest.raises(ValueError, match="outplan_id is a UUID"):
        Filter.of([], None, id_)


def test_ids_in_seen_may_be_in_upper_case() -> None:
    assert list(Versions(Filter(), {ID.upper(): 3}).judge(make_event(3))) == []

"""Test slots, partitions and routing keys."""

from collections import Counter
from uuid import uuid4

import pytest

from outplan.client.ids import new_id
from outplan.contract.slots import (
    SLOTS,
    partition_of,
    routing_key,
    slot_of,
    slots_of,
    split_routing_key,
)


def test_a_slot_is_the_last_two_hex_digits_in_lower_case() -> None:
    assert slot_of("0192F0C1-7A51-7B7E-A2F5-D7A0E9A4B1C3") == "c3"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("outplan_create.c3", ("outplan_create", "c3")),
        ("outplan_create", ("outplan_create", None)),
        ("outplan_create.C3", ("outplan_create.C3", None)),
        ("outplan_create.c", ("outplan_create.c", None)),
        ("outplan_create.c3a", ("outplan_create.c3a", None)),
        ("outplan_create.zz", ("outplan_create.zz", None)),
        ("a.b.c3", ("a.b", "c3")),
        ("a\nb.c3", ("a\nb", "c3")),
        ("outplan_create.c3\n", ("outplan_create.c3\n", None)),
        (".00", ("", "00")),
        ("", ("", None)),
    ],
)
def test_only_two_lower_case_hex_digits_are_a_slot(key: str, found: tuple[str, str | None]) -> None:
    assert split_routing_key(key) == found


def test_a_routing_key_can_be_split_again() -> None:
    id_ = str(uuid4())
    assert split_routing_key(routing_key("outplan_update", id_)) == ("outplan_update", id_[-2:])


@pytest.mark.parametrize("partitions", [2, 3, 4, 7, 16, 100, 255, 256])
def test_each_slot_belongs_to_one_partition_of_an_even_contiguous_range(partitions: int) -> None:
    ranges = [slots_of(n, partitions) for n in range(partitions)]
    assert [slot for found in ranges for slot in found] == list(SLOTS)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("make_id", [new_id, lambda: str(uuid4())])
def test_ids_spread_evenly(make_id: object) -> None:
    assert callable(make_id)
    counts = Counter(partition_of(slot_of(make_id()), 16) for _ in range(16_000))
    assert len(counts) == 16
    assert all(800 < count < 1_200 for count in counts.values())

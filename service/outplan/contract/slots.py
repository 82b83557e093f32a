"""Map outplans to slots, slots to partitions, and both to routing keys (contract, section 6).

A slot is the last two hex digits of an outplan's id. They are random in UUIDs of versions 4, 5 and
7, so 256 slots spread outplans evenly.
"""

import re
from typing import Final

SLOTS: Final = tuple(f"{n:02x}" for n in range(256))

_SLOT_KEY: Final = re.compile(r"(.*)\.([0-9a-f]{2})", re.DOTALL)


def slot_of(outplan_id: str) -> str:
    """Return the slot of an outplan: two hex digits in lower case."""
    return outplan_id[-2:].lower()


def routing_key(command: str, outplan_id: str) -> str:
    """Return the key to publish a command with: ``<command>.<slot>``."""
    return f"{command}.{slot_of(outplan_id)}"


def split_routing_key(key: str) -> tuple[str, str | None]:
    """Return the command's name and the slot; a key without a slot has None."""
    found = _SLOT_KEY.fullmatch(key)
    return (found[1], found[2]) if found else (key, None)


def partition_of(slot: str, partitions: int) -> int:
    """Return the partition, from 0, that a slot belongs to."""
    return int(slot, 16) * partitions // len(SLOTS)


def slots_of(partition: int, partitions: int) -> list[str]:
    """List the slots of a partition: a contiguous range."""
    return [slot for slot in SLOTS if partition_of(slot, partitions) == partition]

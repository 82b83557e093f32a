"""List the queues by rabbitmqctl and count the commands in them."""

import re
from typing import Final

LIST_QUEUES: Final = (
    "list_queues", "--no-table-headers", "name", "messages",
    "messages_unacknowledged", "consumers",
)  # fmt: skip


def parse_command_counts(listed: str, prefix: str) -> dict[str, int]:
    """Read the answer to `LIST_QUEUES`: the commands in each command queue of any layout.

    A queue without a leader has no count, and counts as not empty.
    """
    rows = (line.split("\t") for line in listed.splitlines())
    is_command_queue = re.compile(rf"{re.escape(prefix)}\.commands(\.\d+)?").fullmatch
    return {name: int(count or 1) for name, count, *_ in rows if is_command_queue(name)}

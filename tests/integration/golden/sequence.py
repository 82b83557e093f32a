"""The fixed sequence of commands.

Its order matters: later commands meet what earlier ones have stored.
"""

import json
from dataclasses import replace

from tests.integration.golden.amqp import Header
from tests.integration.golden.command import (
    MAX_BODY_BYTES,
    USER,
    Command,
    command,
    create,
    delete,
    new,
    new_json,
    outplan,
)
from tests.integration.golden.envelopes import headers, properties, replies, routes
from tests.integration.golden.granted import addresses, creates, deletes, resends, updates
from tests.integration.golden.refused import invalid, invalid_json, refused_unread


def commands() -> list[Command]:
    """Return the whole sequence. What is large comes late, and another user's command last."""
    found = [
        *creates(), *addresses(), *updates(), *deletes(), *resends(), *invalid_json(),
        *refused_unread(), *invalid(), *routes(), *replies(), *properties(), *headers(),
        *_large(), *_last(), *_of_another_user(),
    ]  # fmt: skip
    labels = [each.label for each in found]
    assert len(set(labels)) == len(labels), "labels are unique"
    return found


def hold(number: int) -> Command:
    """Make a command that occupies the worker while others arrive."""
    return delete(f"hold {number}", outplan(404), "rejected")


def _large() -> list[Command]:
    body = new_json(id=outplan(150), name="exact")
    exact = body + b" " * (MAX_BODY_BYTES - len(body))
    many = json.dumps(new(**{f"field_{n:02}_{'x' * 80}": n for n in range(40)})).encode()

    def fill(size: int) -> list[Header]:
        return [("first", "S", "1"), ("h", "S", "h" * size), ("last", "S", "3")]

    return [
        command("body of the limit", "outplan_create", exact),
        command("body past the limit", "outplan_create", exact + b" ", "rejected"),
        command("body of a megabyte", "outplan_create", b"x" * 1_000_000, "rejected"),
        command("body past the limit, unknown command", "no.such", exact + b" ", "rejected"),
        create("detail of the limit", id=outplan(151), detail="d" * 65_535),
        create("detail past the limit", "rejected", id=outplan(152), detail="d" * 65_536),
        command("large headers", "outplan_create", b"{}", "rejected", headers=fill(100_000)),
        command(
            "headers without room for a large problem", "outplan_create", many, "rejected",
            headers=fill(128_000),
        ),
        command(
            "headers that fill a frame", "outplan_create", b"{}", "rejected",
            headers=fill(130_500),
        ),
        command(
            "headers that fill a frame, accepted", "outplan_create", new(id=outplan(153)),
            headers=fill(130_500),
        ),
    ]  # fmt: skip


def _last() -> list[Command]:
    """End each stream: whatever comes too much comes before these."""
    return [
        create("last accepted", id=outplan(160)),
        command("last rejected", "outplan_create", b"{}", "rejected"),
    ]


def _of_another_user() -> list[Command]:
    invalid = command(
        "user_id of another user", "outplan_create", b"{}", "rejected", user_id=USER,
        headers=[("mark", "S", "kept")], app_id="golden",
    )  # fmt: skip
    return [replace(invalid, other_user=True)]

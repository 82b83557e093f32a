"""Test the harness' contract on real servers and in memory."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest

from outplan.client import (
    AlreadyExists,
    CommandRejected,
    InvalidCommand,
    MessageIdReused,
    NotFound,
    TooLarge,
    VersionConflict,
)
from outplan.testing import AsyncService, Servers
from tests.support.modes import MODES, open_service, outplan_fields, versions
from tests.support.world import CUSTOMER


@pytest.fixture(scope="module", params=MODES)
async def service(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[AsyncService]:
    """Share one service among tests that leave its worker alone and use their own ids."""
    async with open_service(request.param, servers) as found:
        yield found


@pytest.fixture(params=MODES)
async def fresh(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[AsyncService]:
    """Open a service for tests that control the worker or look at all data."""
    async with open_service(request.param, servers) as found:
        yield found


# --- commands and their outcomes ---------------------------------------------------------------


async def test_create_update_and_delete_return_outcomes_and_publish_events(
    service: AsyncService,
) -> None:
    created = await service.create(**outplan_fields(try_interval=5_000))
    id_ = created.outplan.id
    updated = await service.update(UUID(id_), try_interval=6_000, expected_version=1)
    same = await service.update(id_, try_interval=6_000)
    deleted = await service.delete(id_, customer_id=CUSTOMER)
    gone = await service.delete(id_)

    results = [created, updated, same, deleted, gone]
    assert [(r.status, r.version, r.duplicate) for r in results] == [
        ("accepted", 1, False), ("accepted", 2, False), ("unchanged", 2, False),
        ("accepted", 3, False), ("unchanged", 3, False),
    ]  # fmt: skip
    assert (updated.outplan.try_interval, deleted.outplan.deleted) == (6_000, True)
    for result in (created, updated, deleted):
        event = await service.next_event(outplan_id=id_)
        assert (event.id, event.version, event.data) == (
            result.message_id, result.version, result.outplan,
        )  # fmt: skip
    [document] = [d for d in await service.documents() if d.outplan.id == id_]
    assert (document.outplan, document.version) == (deleted.outplan, 3)


async def test_a_resent_command_is_a_duplicate_and_its_event_is_repeated(
    service: AsyncService,
) -> None:
    id_ = str(uuid4())
    first = await service.create(**outplan_fields(), message_id=UUID(id_))
    again = await service.create(**outplan_fields(), message_id=id_)

    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.outplan, again.version) == (first.outplan, first.version)
    original, repeat = [event for event in await service.events() if event.id == id_]
    assert original == repeat
    # next_event skips the repeat.
    assert await service.next_event(outplan_id=first.outplan.id) == original
    updated = await service.update(first.outplan.id, name="the next")
    assert (await service.next_event(outplan_id=first.outplan.id)).id == updated.message_id
    assert [d.version for d in await service.documents() if d.outplan.id == updated.outplan.id] == [
        2
    ]


async def test_an_update_that_changes_nothing_has_no_event(service: AsyncService) -> None:
    id_ = (await service.create(**outplan_fields(name="as it is"))).outplan.id
    assert (await service.update(id_, name="as it is")).status == "unchanged"
    await service.update(id_, name="other")
    assert (await versions(service))[id_] == [1, 2]


async def test_each_rejection_raises_its_own_error(service: AsyncService) -> None:
    id_ = str(uuid4())
    await service.create(**outplan_fields(id=id_), message_id=f"{id_} first")

    with pytest.raises(NotFound):
        await service.update(str(uuid4()), name="other")
    with pytest.raises(NotFound):
        await service.delete(id_, customer_id=uuid4())
    with pytest.raises(AlreadyExists):
        await service.create(**outplan_fields(id=id_))
    with pytest.raises(MessageIdReused):
        await service.create(**outplan_fields(id=id_, name="other"), message_id=f"{id_} first")
    with pytest.raises(VersionConflict) as conflict:
        await service.delete(id_, expected_version=7, message_id=f"{id_} stale")
    assert conflict.value.current_version == 1
    [copy] = [c for c in await service.rejected() if c.message_id == f"{id_} stale"]
    assert (copy.name, copy.problem) == ("outplan_delete", conflict.value.problem)
    assert json.loads(copy.body) == {"id": id_, "expected_version": 7}


async def test_commands_that_the_client_refuses_are_not_sent(service: AsyncService) -> None:
    before = await service.rejected()
    with pytest.raises(InvalidCommand) as invalid:
        await service.create(**outplan_fields(dial_timeout=30, dial_timout=30_000))
    with pytest.raises(TooLarge):
        await service.update(str(uuid4()), detail="\N{BELL}" * 65_535)
    with pytest.raises(InvalidCommand, match="255 bytes"):
        await service.delete(str(uuid4()), message_id="x" * 256)

    assert {e.pointer for e in invalid.value.errors} == {"/dial_timeout", "/dial_timout"}
    await service.create(**outplan_fields())
    assert await service.rejected() == before


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("outplan_create", b"{", "invalid_json"),
        ("outplan_create", b"[]", "invalid_json"),
        ("outplan_create", b'{"name": "\xff"}', "invalid_json"),
        ("outplan_create", {"name": float("nan")}, "invalid_json"),
        ("outplan_paint", {}, "unknown_command"),
        ("", {}, "unknown_command"),
        ("outplan_create", {"name": "only"}, "invalid_command"),
        ("outplan_update", {"id": str(uuid4())}, "invalid_command"),
        ("outplan_delete", {"id": uuid4()}, "not_found"),
        ("outplan_create", b" " * 262_145, "too_large"),
    ],
)
async def test_an_invalid_command_is_in_the_rejected_queue_as_it_was_sent(
    service: AsyncService,
    name: str,
    body: Mapping[str, Any] | bytes,
    code: str,
) -> None:
    sent = await service.publish(name, body, headers={"mine": 1})
    await service.create(**outplan_fields())

    [copy] = [copy for copy in await service.rejected() if copy.message_id == sent]
    assert (copy.name, copy.problem.code, copy.problem.command_id) == (name, code, sent)
    assert (
        copy.body == body
        if isinstance(body, bytes)
        else json.loads(copy.body).keys() == body.keys()
    )


# --- events and documents ----------------------------------------------------------------------


async def test_next_event_returns_each_event_once(service: AsyncService) -> None:
    one = (await service.create(**outplan_fields())).outplan.id
    other = (await service.create(**outplan_fields())).outplan.id
    await service.update(one, name="later")
    await service.delete(one)

    deleted = await service.next_event("outplan_deleted", outplan_id=one.upper())
    created = await service.next_event(outplan_id=UUID(one))
    updated = await service.next_event(outplan_id=one)
    assert [e.version for e in (created, updated, deleted)] == [1, 2, 3]
    assert (updated.changed, updated.data.name) == (("name",), "later")
    assert (await service.next_event("outplan_created", outplan_id=other)).data.id == other
    with pytest.raises(TimeoutError, match=rf"no .*{one} within 0\.05 s"):
        await service.next_event(outplan_id=one, within=0.05)


async def test_next_event_refuses_a_filter_that_no_event_matches(service: AsyncService) -> None:
    asked: Any = [{"kind": "outplan_create"}, {"outplan_id": "evenings"}]
    for wrong in asked:
        with pytest.raises(ValueError, match="not "):
            await service.next_event(**wrong)


async def test_next_event_waits_for_an_event(service: AsyncService) -> None:
    id_ = str(uuid4())
    waiting = asyncio.create_task(service.next_event(outplan_id=id_))
    sent = await service.publish("outplan_create", outplan_fields(id=id_))
    assert (await waiting).id == sent


async def test_documents_returns_all_outplans_in_the_order_of_their_creation(
    fresh: AsyncService,
) -> None:
    assert (await fresh.documents(), await fresh.events(), await fresh.rejected()) == ((), (), ())
    made = [await fresh.create(**outplan_fields(name=f"outplan {n}")) for n in range(3)]
    await fresh.delete(made[0].outplan.id)

    found = await fresh.documents()
    assert [(d.outplan.name, d.version) for d in found] == [
        ("outplan 0", 2), ("outplan 1", 1), ("outplan 2", 1),
    ]  # fmt: skip
    assert [d.outplan.deleted for d in found] == [True, False, False]


async def test_commands_take_effect_in_the_order_of_their_publication(
    service: AsyncService,
) -> None:
    id_ = str(uuid4())
    sent = [await service.publish("outplan_create", outplan_fields(id=id_, name="0"))]
    for n in range(1, 40):
        body = {"id": id_, "name": str(n), "expected_version": n}
        sent.append(await service.publish("outplan_update", body))

    events = [await service.next_event(outplan_id=id_) for _ in sent]
    assert [(e.id, e.version, e.data.name) for e in events] == [
        (command, n + 1, str(n)) for n, command in enumerate(sent)
    ]


async def test_calls_can_run_concurrently(service: AsyncService) -> None:
    id_ = (await service.create(**outplan_fields())).outplan.id
    calls = [service.update(id_, name=f"name {n}", expected_version=1) for n in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [r for r in results if isinstance(r, CommandRejected)]
    assert [r.code for r in refused] == ["version_conflict"] * 9


async def test_rejected_returns_commands_in_the_order_of_their_rejection(
    service: AsyncService,
) -> None:
    """Use more than 32: RabbitMQ requeues so many in any order, if they are requeued at once."""
    before = len(await service.rejected())
    sent = [await service.publish("outplan_paint", {}) for _ in range(40)]
    await service.create(**outplan_fields())  # The worker handles it after all others.
    for _ in range(2):
        found = await service.rejected()
        assert [copy.message_id for copy in found[before:]] == sent


@pytest.mark.parametrize(
    ("name", "headers"),
    [("x" * 256, {}), ("\udc80", {}), ("outplan_delete", {"it": object()})],
    ids=["a long name", "no text", "no value"],
)
async def test_publish_refuses_what_amqp_does_not_carry(
    service: AsyncService, name: str, headers: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="AMQP does not carry"):
        await service.publish(name, {}, headers=headers)


@pytest.mark.parametrize("body", ["{}", 1, None, ["{}"]])
async def test_publish_refuses_a_body_that_is_neither_mapping_nor_bytes(
    service: AsyncService, body: Any
) -> None:
    with pytest.raises(TypeError, match="a body is a mapping or bytes, not"):
        await service.publish("outplan_delete", body)


@pytest.mark.parametrize("message_id", ["", "x" * 256])
async def test_publish_refuses_a_message_id_that_amqp_does_not_carry(
    service: AsyncService, message_id: str
) -> None:
    with pytest.raises(InvalidCommand, match="255 bytes"):
        await service.publish("outplan_delete", {"id": str(uuid4())}, message_id=message_id)

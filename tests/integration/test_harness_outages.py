"""Test the harness' contract during crashes, hangs and broker outages, in both modes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from outplan.client import OutcomeUnknown
from outplan.testing import AsyncService, NotControllable, Servers, start_servers
from outplan.testing.errors import WorkerFailed
from outplan.testing.live import live_service
from outplan.testing.servers import AMQP_VARIABLE, MONGO_VARIABLE
from tests.support.modes import MODES, open_service, outplan_fields, versions


@pytest.fixture(params=MODES)
async def service(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[AsyncService]:
    async with open_service(request.param, servers) as found:
        yield found


@pytest.fixture(scope="module")
def stoppable(servers: Servers) -> Iterator[Servers]:
    """Start servers that a test may stop."""
    if servers.mode != "urls":
        yield servers
        return
    with start_servers("own") as own:
        yield own


async def test_a_worker_killed_under_load_loses_and_repeats_no_change(
    service: AsyncService,
) -> None:
    ids = [str(uuid4()) for _ in range(4)]
    for id_ in ids:
        await service.publish("outplan_create", outplan_fields(id=id_, name="0"))
    for n in range(1, 101):
        # The second changes nothing. Handled again after the third, it would undo that.
        for name in (f"{n}", f"{n}", f"{n}."):
            await service.publish("outplan_update", {"id": ids[n % 4], "name": name})
        if n % 40 == 0:
            await service.next_event()
            await service.kill_worker()
            await service.start_worker()
    await service.create(**outplan_fields(name="the last"))

    documents = {d.outplan.id: d for d in await service.documents() if d.outplan.id in ids}
    assert sorted(d.outplan.name for d in documents.values()) == ["100.", "97.", "98.", "99."]
    assert {d.version for d in documents.values()} == {51}
    published = await versions(service)
    assert [published[id_] for id_ in ids] == [list(range(1, 52))] * 4
    assert await service.rejected() == ()


async def test_commands_wait_for_a_worker(service: AsyncService) -> None:
    await service.kill_worker()
    asking = asyncio.create_task(service.create(**outplan_fields()))
    with pytest.raises(TimeoutError):
        await service.next_event(within=0.2)
    assert not asking.done()

    await service.start_worker()
    assert (await asking).version == 1
    assert len(await service.documents()) == 1


async def test_a_paused_worker_does_nothing_until_it_resumes(service: AsyncService) -> None:
    await service.pause_worker()
    sent = await service.publish("outplan_create", outplan_fields())
    with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
        await service.next_event(within=0.2)
    assert await service.documents() == ()

    await service.resume_worker()
    assert (await service.next_event()).id == sent


async def test_a_paused_worker_can_be_killed_and_another_started(service: AsyncService) -> None:
    await service.pause_worker()
    sent = await service.publish("outplan_create", outplan_fields())
    await service.kill_worker()
    await service.start_worker()
    assert (await service.next_event()).id == sent


async def test_starting_a_running_worker_only_ends_its_pause(service: AsyncService) -> None:
    await service.start_worker()
    await service.pause_worker()
    await service.start_worker()
    await service.create(**outplan_fields())


async def test_only_a_running_worker_can_be_paused(service: AsyncService) -> None:
    await service.kill_worker()
    await service.kill_worker()
    with pytest.raises(WorkerFailed, match="not running"):
        await service.pause_worker()
    with pytest.raises(WorkerFailed, match="not running"):
        await service.resume_worker()


@pytest.mark.parametrize("mode", MODES)
async def test_a_restarted_broker_still_has_its_messages(mode: str, stoppable: Servers) -> None:
    async with open_service(mode, stoppable) as service:
        before = await service.create(**outplan_fields())
        await service.kill_worker()
        waiting = await service.publish("outplan_create", outplan_fields())
        await service.stop_broker()
        asking = asyncio.create_task(service.create(**outplan_fields()))
        sending = asyncio.create_task(service.publish("outplan_create", outplan_fields()))
        await asyncio.wait({asking, sending}, timeout=0.2)
        assert not asking.done()
        assert not sending.done()

        await service.start_broker()
        await service.start_worker()
        accepted = {before.message_id, waiting, (await asking).message_id, await sending}
        # Events published just before the crash may be repeated after it.
        found = {before.message_id}
        while found < accepted:
            found.add((await service.next_event()).id)
        assert found == accepted
        assert len(await service.documents()) == 4


@pytest.mark.parametrize("mode", MODES)
async def test_calls_that_need_a_stopped_broker_time_out(mode: str, stoppable: Servers) -> None:
    async with open_service(mode, stoppable, within=0.5) as service:
        created = await service.create(**outplan_fields())
        await service.stop_broker()
        with pytest.raises(OutcomeUnknown):
            await service.create(**outplan_fields())
        with pytest.raises(OutcomeUnknown):
            await service.publish("outplan_create", outplan_fields())
        with pytest.raises(TimeoutError, match="the rejected commands cannot be read: "):
            await service.rejected()
        assert [event.id for event in await service.events()] == [created.message_id]
        assert len(await service.documents()) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_worker_survives_a_restart_of_its_broker(mode: str, stoppable: Servers) -> None:
    async with open_service(mode, stoppable) as service:
        await service.stop_broker()
        await service.start_broker()
        created = await service.create(**outplan_fields())
        assert (await service.next_event()).id == created.message_id


async def test_a_broker_given_by_url_cannot_be_stopped(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AMQP_VARIABLE, servers.rabbitmq.url)
    monkeypatch.setenv(MONGO_VARIABLE, servers.mongodb.url)
    with start_servers("urls") as given:
        async with live_service(given) as service:
            with pytest.raises(NotControllable):
                await service.stop_broker()
            with pytest.raises(NotControllable):
                await service.start_broker()
            await service.create(**outplan_fields())

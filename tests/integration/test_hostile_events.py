"""Send what most AMQP libraries cannot decode to subscribers, clients and ``outplan watch``."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from outplan.client import Event, Events, OutplanClient, Reconnected, Unreadable, events
from outplan.client.session import ReconnectingSession, Route
from outplan.rabbitmq.connection import open_connection
from outplan.testing import Deployment
from outplan.testing.live import live_service
from outplan.testing.servers import Servers
from tests.support.balancer import run_balancer
from tests.support.commands import run_command
from tests.support.events import OUTPLAN_ID, encode_event
from tests.support.hostile import HOSTILE, Hostile
from tests.support.raw_publisher import RawPublisher, open_raw_publisher
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, TEL, World, create_body

EVENT_KEY: Final = f"outplan_updated.{CUSTOMER}.{OUTPLAN_ID}"
TRACE: Final = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# The least pauses before the second to the eighth of sessions that make no progress.
LEAST_SECONDS: Final = 0.2 * (0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4)


@pytest.fixture
async def publisher(deployment: Deployment, world: World) -> AsyncIterator[RawPublisher]:
    async with open_raw_publisher(deployment.amqp_url) as opened:
        yield opened


def to_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


async def take(stream: Events, count: int = 1) -> list[Any]:
    async with asyncio.timeout(30):
        return [await anext(stream) for _ in range(count)]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_subscriber_reads_an_event_whatever_its_properties(
    deployment: Deployment, publisher: RawPublisher, queue: str, name: str
) -> None:
    reconnects: list[Reconnected] = []
    stream = events(
        deployment.amqp_url, prefix=deployment.prefix, queue=queue, on_reconnect=reconnects.append
    )
    async with stream:
        first = HOSTILE[name].apply(EVENT_KEY, to_bytes(encode_event(1)))
        second = Hostile().apply(EVENT_KEY, to_bytes(encode_event(2)))
        await publisher.publish(f"{deployment.prefix}.events", [first, second])

        found = await take(stream, 2)
        await stream.settle()

    assert [item.version for item in found] == [1, 2]
    assert all(isinstance(item, Event) for item in found)
    assert reconnects == []


async def test_what_is_no_event_arrives_as_unreadable_and_is_acked(
    deployment: Deployment, publisher: RawPublisher, queue: str
) -> None:
    hostile = {name: each for name, each in HOSTILE.items() if name != "routing-key-not-UTF-8"}
    sent = [each.apply(EVENT_KEY, name.encode()) for name, each in hostile.items()]
    sent.append(HOSTILE["routing-key-not-UTF-8"].apply(EVENT_KEY, b"\xff"))
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        await publisher.publish(f"{deployment.prefix}.events", sent)
        found = await take(stream, len(sent))
        await stream.settle()

    assert all(isinstance(item, Unreadable) for item in found)
    assert [item.body for item in found] == [each.body for each in sent]
    assert [item.routing_key for item in found[:-1]] == [EVENT_KEY] * len(hostile)
    assert found[-1].routing_key == EVENT_KEY + r"\xff\xfe"
    async with (
        open_connection(deployment.amqp_url, "test") as connection,
        connection.temporary_channel() as channel,
    ):
        # The broker requeued what was not acked before it closed the connection.
        assert (await channel.queue_declare(queue, passive=True)).message_count == 0


async def test_a_command_whose_correlation_id_is_not_utf8_is_rejected(
    deployment: Deployment, publisher: RawPublisher, world: World, worker: WorkerProcess, queue: str
) -> None:
    reply_to = world.reply_queue.name.encode()
    bad = HOSTILE["correlation_id-not-UTF-8"].apply(
        "outplan_create", to_bytes(create_body()), {"message_id": b"bad", "reply_to": reply_to}
    )
    good = Hostile().apply("outplan_create", to_bytes(create_body()), {"message_id": b"good"})
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        await publisher.publish(f"{deployment.prefix}.commands", [bad, good])
        [event] = await take(stream)

    assert event.id == "good"
    await world.wait_for(lambda: bool(world.replies["bad"]))
    [reply] = world.replies["bad"]
    assert (reply["status"], reply["problem"]["code"]) == ("rejected", "invalid_properties")
    assert reply["problem"]["detail"] == "correlation_id is not UTF-8"


async def test_trace_headers_that_are_not_of_the_w3c_form_are_left_out(
    deployment: Deployment, publisher: RawPublisher, world: World, worker: WorkerProcess
) -> None:
    def send(id_: bytes, parent: bytes, state: bytes) -> Any:
        table = [
            (name, b"S" + len(value).to_bytes(4, "big") + value)
            for name, value in ((b"traceparent", parent), (b"tracestate", state))
        ]
        return Hostile({"message_id": id_}, table).apply("outplan_create", to_bytes(create_body()))

    sent = [send(b"good", TRACE, b"a=1"), send(b"half", TRACE, b"\xff"), send(b"bad", b"x", b"a=1")]
    await publisher.publish(f"{deployment.prefix}.commands", sent)
    await world.wait_for_events({"good", "half", "bad"})

    traces = {
        event.message_id: {k: v for k, v in event.headers.items() if k.startswith("trace")}
        for event in world.events
    }
    assert traces == {
        "good": {"traceparent": TRACE.decode(), "tracestate": "a=1"},
        "half": {"traceparent": TRACE.decode()},
        "bad": {},
    }


async def test_watch_names_what_it_cannot_read_and_shows_the_events(
    deployment: Deployment, publisher: RawPublisher
) -> None:
    unreadable = [each.apply(EVENT_KEY, b"[]") for each in HOSTILE.values()]
    readable = [
        each.apply(EVENT_KEY, to_bytes(encode_event(version)))
        for version, each in enumerate(HOSTILE.values(), 1)
    ]
    async with run_command(deployment, "watch", "--limit", str(len(HOSTILE))) as watching:
        await watching.wait_for_error("watching")
        await publisher.publish(f"{deployment.prefix}.events", [*unreadable, *readable])
        assert await watching.wait() == 0

    versions = [json.loads(line)["version"] for line in watching.out.splitlines()]
    assert versions == list(range(1, len(HOSTILE) + 1))
    assert watching.err.count(b"cannot read a message with routing key") == len(HOSTILE)
    assert rb"\xff\xfe" in watching.err


async def test_a_client_ignores_foreign_messages_in_its_reply_queue(
    deployment: Deployment, publisher: RawPublisher, worker: WorkerProcess
) -> None:
    replies: list[tuple[str | None, bytes]] = []
    route = Route(deployment.amqp_url, deployment.prefix, f"{deployment.prefix}.own-replies")
    sessions = ReconnectingSession(route, lambda *reply: replies.append(reply))
    running = asyncio.create_task(sessions.run())
    await sessions.wait_until_open(30)
    session = await sessions.session()
    sent = [
        each.apply(route.reply_queue, name.encode())
        for name, each in HOSTILE.items()
        if not each.key
    ]
    await publisher.publish("", sent)
    async with asyncio.timeout(30):
        while len(replies) < len(sent):
            await asyncio.sleep(0.01)

    assert [body for _, body in replies] == [each.body for each in sent]
    assert not session.lost.done()
    running.cancel()


async def test_the_test_harness_reads_what_others_put_into_its_queues(servers: Servers) -> None:
    async with live_service(servers) as service:
        deployment = service.deployment
        problem = {"detail": "x", "command_id": None, "code": "too_large", "status": 413,
                   "title": "x", "type": "urn:outplan:problem:too-large"}  # fmt: skip
        text = to_bytes(problem)
        header = (b"x-problem", b"S" + len(text).to_bytes(4, "big") + text)
        async with open_raw_publisher(deployment.amqp_url) as publisher:
            unreadable = [each.apply(EVENT_KEY, b"[]") for each in HOSTILE.values()]
            await publisher.publish(f"{deployment.prefix}.events", unreadable)
            copies = [
                Hostile(each.properties, [*(each.table or []), header]).apply(
                    f"{deployment.prefix}.rejected", b"{"
                )
                for each in HOSTILE.values()
            ]
            await publisher.publish("", copies)
        created = await service.create(customer_id=CUSTOMER, name="x", source=TEL)
        event = await service.next_event()
        assert event.id == created.message_id
        assert len(await service.rejected()) == len(copies)


async def test_a_subscriber_pauses_ever_longer_between_sessions_without_an_ack(
    deployment: Deployment, world: World
) -> None:
    opened: asyncio.Queue[Reconnected] = asyncio.Queue()
    async with run_balancer(deployment.amqp_url) as proxy:
        stream = events(proxy.url, prefix=deployment.prefix, on_reconnect=opened.put_nowait)
        async with stream:
            waiting = asyncio.create_task(anext(stream))
            since = asyncio.get_running_loop().time()
            async with asyncio.timeout(60):
                for _ in range(7):
                    proxy.disconnect()
                    await opened.get()
            assert asyncio.get_running_loop().time() - since >= LEAST_SECONDS
            waiting.cancel()


async def test_a_client_pauses_ever_longer_between_sessions_without_a_confirm(
    deployment: Deployment, world: World
) -> None:
    async with run_balancer(deployment.amqp_url) as proxy:
        route = Route(proxy.url, deployment.prefix, f"{deployment.prefix}.own-replies")
        sessions = ReconnectingSession(route, lambda *_: None)
        running = asyncio.create_task(sessions.run())
        await sessions.wait_until_open(30)
        since = asyncio.get_running_loop().time()
        async with asyncio.timeout(60):
            for _ in range(7):
                session = await sessions.session()
                proxy.disconnect()
                await asyncio.wait([session.lost])
                await asyncio.sleep(0)  # The session is replaced by a future in the next step.
            await sessions.session()
        assert asyncio.get_running_loop().time() - since >= LEAST_SECONDS
        running.cancel()


async def test_an_acked_event_makes_the_next_pause_short(
    deployment: Deployment, publisher: RawPublisher, queue: str
) -> None:
    async with run_balancer(deployment.amqp_url) as proxy:
        stream = events(proxy.url, prefix=deployment.prefix, queue=queue)
        async with stream, asyncio.timeout(12):
            # Without progress, the pauses before the last of these sessions took up to 100 s.
            for version in range(1, 13):
                event = to_bytes(encode_event(version))
                await publisher.publish(
                    f"{deployment.prefix}.events", [Hostile().apply(EVENT_KEY, event)]
                )
                found = await anext(stream)
                assert isinstance(found, Event)
                assert found.version == version
                await stream.settle()
                proxy.disconnect()


async def test_a_client_that_is_asked_again_after_each_loss_pauses_shortly(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix) as client,
        asyncio.timeout(12),
    ):
        for n in range(12):
            await client.create(customer_id=CUSTOMER, name=f"n {n}", source=TEL)
            proxy.disconnect()

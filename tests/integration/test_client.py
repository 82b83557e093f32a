"""Test OutplanClient against real servers: results, rejections, outages and bulk sending."""

import asyncio
import gc
import json
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID, uuid4

import aio_pika
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from yarl import URL

from outplan.client import (
    AlreadyExists,
    CommandRejected,
    InvalidCommand,
    InvalidJson,
    MessageIdReused,
    NoExchange,
    NotFound,
    OutcomeUnknown,
    OutplanClient,
    Refused,
    Request,
    TooLarge,
    UnknownCommand,
    Unreachable,
    VersionConflict,
    events,
)
from outplan.contract.messages import Address, CommandName
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.balancer import run_balancer
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import CUSTOMER, World

# Set OUTPLAN_TEST_MANY=1000000 to send a million commands.
MANY = int(os.environ.get("OUTPLAN_TEST_MANY", "5000"))
SOURCE = Address(type="tel", target="+15559876543")


def create_fields(**fields: Any) -> dict[str, Any]:
    """Build the arguments of a valid create; ``fields`` add to them and replace."""
    return {"customer_id": CUSTOMER, "name": "evenings", "source": SOURCE, **fields}


@pytest.fixture
async def unvalidated_client(
    deployment: Deployment, worker: WorkerProcess
) -> AsyncIterator[OutplanClient]:
    """Open a client that sends bodies without validating them."""
    async with OutplanClient(
        deployment.amqp_url, prefix=deployment.prefix, validate=False
    ) as client:
        yield client


async def test_create_update_and_delete_return_each_version(
    client: OutplanClient, world: World
) -> None:
    created = await client.create(**create_fields(try_interval=5_000))
    assert (created.status, created.duplicate, created.version) == ("accepted", False, 1)
    id_ = created.outplan.id
    assert created.outplan.created_at is not None
    assert created.outplan.created_at.utcoffset() is not None

    updated = await client.update(UUID(id_), try_interval=6_000, expected_version=1)
    assert (updated.version, updated.outplan.try_interval) == (2, 6_000)
    same = await client.update(id_, try_interval=6_000)
    assert (same.status, same.version) == ("unchanged", 2)

    deleted = await client.delete(id_, customer_id=CUSTOMER)
    assert (deleted.status, deleted.version, deleted.outplan.deleted) == ("accepted", 3, True)
    assert deleted.outplan.deleted_at is not None
    assert (await client.delete(id_)).status == "unchanged"

    history = await world.read_history(id_)
    assert [e["_id"] for e in history] == [r.message_id for r in (created, updated, deleted)]


async def test_a_command_carries_every_property_of_the_contract(
    client: OutplanClient, world: World, worker: WorkerProcess, deployment: Deployment
) -> None:
    queue = await world.channel.declare_queue(exclusive=True)
    await queue.bind(f"{deployment.prefix}.commands", "outplan_create.#")
    result = await client.create(**create_fields(), message_id="a-create")
    message = await queue.get()

    # The client derives the same id as the worker, so the slot is the outplan's too.
    assert message.routing_key == f"outplan_create.{result.outplan.id[-2:]}"
    assert message.headers == {"outplan_id": result.outplan.id}
    assert (message.message_id, message.type) == ("a-create", "outplan_create")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.timestamp is not None
    assert json.loads(message.body)["source"] == SOURCE.model_dump()


async def test_a_command_carries_the_current_trace_context(
    client: OutplanClient, world: World
) -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("call") as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        created = (await client.create(**create_fields())).message_id
        sent = await client.send(Request.create(**create_fields()))
        many = client.send_many([Request.create(**create_fields())])
        ids = {created, sent, *[result.request.message_id async for result in many]}

    await world.wait_for(lambda: world.event_ids() == ids)
    traces = [str(event.headers["traceparent"]).split("-")[1] for event in world.events]
    assert traces == [trace_id] * 3


async def test_each_problem_code_raises_its_own_error(client: OutplanClient) -> None:
    id_ = str(uuid4())
    await client.create(**create_fields(id=id_), message_id=f"{id_} first")

    with pytest.raises(NotFound) as not_found:
        await client.update(str(uuid4()), name="other")
    assert (not_found.value.problem.status, not_found.value.code) == (404, "not_found")
    with pytest.raises(AlreadyExists):
        await client.create(**create_fields(id=id_))
    with pytest.raises(MessageIdReused):
        await client.create(**create_fields(id=id_, name="other"), message_id=f"{id_} first")
    with pytest.raises(VersionConflict) as conflict:
        await client.delete(id_, expected_version=7)
    assert conflict.value.current_version == 1


async def test_an_invalid_command_is_rejected_without_a_round_trip(
    client: OutplanClient, world: World
) -> None:
    with pytest.raises(InvalidCommand) as invalid:
        await client.create(**create_fields(dial_timeout=30, dial_timout=30_000))
    assert {e.pointer for e in invalid.value.errors} == {"/dial_timeout", "/dial_timout"}
    assert "milliseconds" in str(invalid.value)
    with pytest.raises(TooLarge):
        await client.create(**create_fields(detail="\N{BELL}" * 65_535, id=str(uuid4())))

    # The worker rejects commands in order, so a sent one would be in the queue by now.
    await client.create(**create_fields())
    assert world.rejected == []


@pytest.mark.parametrize(
    ("error", "request_"),
    [
        (InvalidCommand, Request.update("7", name="")),
        (InvalidJson, Request.update(str(uuid4()), name="\ud800")),
        (TooLarge, Request.update(str(uuid4()), detail="x" * 262_144)),
        (UnknownCommand, Request(cast(CommandName, "outplan_paint"), {})),
    ],
)
async def test_without_validation_the_worker_rejects_the_command(
    unvalidated_client: OutplanClient, world: World, error: type[CommandRejected], request_: Request
) -> None:
    with pytest.raises(error) as rejected:
        await unvalidated_client.ask(request_)
    assert rejected.value.problem.command_id == request_.message_id
    assert (await world.wait_for_rejected(request_.message_id)).message_id == request_.message_id


async def test_a_repeated_message_id_returns_a_duplicate(
    client: OutplanClient, world: World
) -> None:
    first = await client.create(**create_fields(), message_id="once")
    again = await client.create(**create_fields(), message_id="once")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.outplan == first.outplan
    assert len(await world.read_history(first.outplan.id)) == 1


async def test_concurrent_commands_with_one_message_id_have_one_effect(
    client: OutplanClient, world: World
) -> None:
    calls = [client.create(**create_fields(), message_id="at once") for _ in range(20)]
    results = await asyncio.gather(*calls)
    assert sorted(r.duplicate for r in results) == [False] + [True] * 19
    assert len(await world.read_history(results[0].outplan.id)) == 1


@pytest.mark.parametrize("first", [0, 1])
async def test_two_commands_in_flight_with_one_message_id_have_separate_confirms(
    deployment: Deployment, world: World, first: int
) -> None:
    await world.channel.queue_delete(f"{deployment.prefix}.commands")
    queue = await world.channel.declare_queue(exclusive=True)
    await queue.bind(f"{deployment.prefix}.commands", "outplan_create.#")
    requests = [
        Request.create(**create_fields(), message_id="one"),
        Request.delete(str(uuid4()), message_id="one"),
    ]
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=1) as client:
        sending = [client.send(requests[first]), client.send(requests[1 - first])]
        results = await asyncio.gather(*sending, return_exceptions=True)
    assert results[first] == "one"
    assert isinstance(results[1 - first], OutcomeUnknown)
    assert "NO_ROUTE" in str(results[1 - first])


async def test_a_command_is_resent_without_a_second_effect_when_the_reply_is_late(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with OutplanClient(
        deployment.amqp_url, prefix=deployment.prefix, resend_after=0.1
    ) as client:
        worker.signal(signal.SIGSTOP)
        asking = asyncio.create_task(client.create(**create_fields(), message_id="slow"))
        copies = await world.channel.declare_queue(exclusive=True)
        await copies.bind(f"{deployment.prefix}.commands", "#")
        async with copies.iterator(no_ack=True) as sent:
            for _ in range(2):
                assert (await anext(sent)).message_id == "slow"
        worker.signal(signal.SIGCONT)
        result = await asking

    assert result.status == "accepted"
    assert [e["_id"] for e in await world.read_history(result.outplan.id)] == ["slow"]


async def test_without_a_reply_the_outcome_is_unknown_and_a_resend_finds_it(
    deployment: Deployment, world: World
) -> None:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=0.3) as hurried:
        with pytest.raises(OutcomeUnknown, match="no worker has replied") as unknown:
            await hurried.create(**create_fields())
    id_ = unknown.value.message_id
    assert id_ in str(unknown.value)

    async with run_worker(deployment):
        await world.wait_for_event(id_)
        async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
            assert (await client.create(**create_fields(), message_id=id_)).duplicate is True


async def test_an_unroutable_command_has_an_unknown_outcome(
    deployment: Deployment, world: World
) -> None:
    await world.channel.queue_delete(f"{deployment.prefix}.commands")
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=0.3) as client:
        with pytest.raises(OutcomeUnknown, match="NO_ROUTE"):
            await client.create(**create_fields())
        with pytest.raises(OutcomeUnknown, match="NO_ROUTE"):
            await client.send(Request.create(**create_fields()))


async def test_a_client_that_is_not_open_raises_at_once(
    deployment: Deployment, world: World
) -> None:
    client = OutplanClient(deployment.amqp_url, prefix=deployment.prefix)
    for _ in ("before", "after"):
        with pytest.raises(RuntimeError, match="not open: call it inside of `async with`"):
            await client.create(**create_fields())
        with pytest.raises(RuntimeError, match="not open"):
            await client.send(Request.create(**create_fields()))
        async with client:
            with pytest.raises(RuntimeError, match="open already"):
                async with client:
                    pass
            await client.send(Request.create(**create_fields()))


async def test_closing_the_client_ends_calls_in_flight_as_unknown(
    deployment: Deployment, world: World
) -> None:
    copies = await world.channel.declare_queue(exclusive=True)
    await copies.bind(f"{deployment.prefix}.commands", "#")
    async with copies.iterator(no_ack=True) as sent:
        async with OutplanClient(
            deployment.amqp_url, prefix=deployment.prefix, timeout=60
        ) as client:
            asking = asyncio.create_task(client.create(**create_fields()))
            await anext(sent)
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown, match="the client was closed"):
                await asking


async def test_closing_the_client_ends_calls_that_wait_for_a_connection_as_unknown(
    deployment: Deployment, world: World
) -> None:
    async with run_balancer(deployment.amqp_url) as proxy:
        async with OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client:
            proxy.budget = lambda: 0
            proxy.disconnect()
            await proxy.wait_for(lambda: proxy.disconnects >= 3)
            calls = [
                client.create(**create_fields()),
                client.send(Request.create(**create_fields())),
            ]
            calling = [asyncio.create_task(call) for call in calls]
            await asyncio.wait(calling, timeout=0)
        async with asyncio.timeout(5):
            for call in calling:
                with pytest.raises(OutcomeUnknown, match="the client was closed"):
                    await call


async def test_a_missing_broker_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"0\.2 s: nothing listens at 127\.0\.0\.1:1"):
        async with OutplanClient("amqp://guest:guest@127.0.0.1:1/", timeout=0.2):
            pass


async def test_a_missing_exchange_is_named(deployment: Deployment, world: World) -> None:
    with pytest.raises(NoExchange, match=r"no exchange 'nowhere\.commands'"):
        async with OutplanClient(deployment.amqp_url, prefix="nowhere"):
            pass


async def test_wrong_credentials_are_refused_at_once(deployment: Deployment, world: World) -> None:
    wrong = URL(deployment.amqp_url).with_password("wrong")
    with pytest.raises(Refused, match="ACCESS_REFUSED"):
        async with OutplanClient(str(wrong), prefix=deployment.prefix, timeout=60):
            pass


async def test_a_user_without_publish_permission_gets_access_refused(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    servers.rabbitmq.ctl("add_user", deployment.prefix, "secret")
    servers.rabbitmq.ctl("set_permissions", "-p", "/", deployment.prefix, ".*", "", ".*")
    url = URL(deployment.amqp_url).with_user(deployment.prefix).with_password("secret")
    async with OutplanClient(str(url), prefix=deployment.prefix, timeout=1) as client:
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await client.create(**create_fields())
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await client.send(Request.create(**create_fields()))
        result = await anext(client.send_many([Request.create(**create_fields())]))
        assert "ACCESS_REFUSED" in str(result.error)


async def test_a_resend_that_is_refused_leaves_the_outcome_unknown(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    async def allow_writes(write: str) -> None:
        rules = (deployment.prefix, ".*", write, ".*")
        await asyncio.to_thread(servers.rabbitmq.ctl, "set_permissions", "-p", "/", *rules)

    await asyncio.to_thread(servers.rabbitmq.ctl, "add_user", deployment.prefix, "secret")
    await allow_writes(".*")
    url = URL(deployment.amqp_url).with_user(deployment.prefix).with_password("secret")
    copies = await world.channel.declare_queue(exclusive=True)
    await copies.bind(f"{deployment.prefix}.commands", "#")
    async with (
        run_balancer(str(url)) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client,
        copies.iterator(no_ack=True) as sent,
    ):
        asking = asyncio.create_task(client.create(**create_fields()))
        await anext(sent)
        await allow_writes("")
        proxy.disconnect()
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await asking


async def test_a_call_during_an_outage_names_the_connection_error(
    deployment: Deployment, world: World
) -> None:
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=1) as client,
    ):
        proxy.budget = lambda: 0
        proxy.disconnect()
        await proxy.wait_for(lambda: proxy.disconnects >= 3)
        with pytest.raises(OutcomeUnknown, match="closes each connection at once"):
            await client.create(**create_fields())


async def test_a_call_waits_for_an_alarm_to_end_and_names_it_on_timeout(
    servers: Servers, deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with (
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=2) as hurried,
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as patient,
    ):
        servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
        try:
            asking = asyncio.create_task(patient.create(**create_fields(), message_id="alarmed"))
            with pytest.raises(OutcomeUnknown, match="memory or disk alarm"):
                await hurried.create(**create_fields())
        finally:
            servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
        result = await asking

    assert result.status == "accepted"
    assert len(await world.read_history(result.outplan.id)) == 1


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost/", "amqp://", "amqp://h:99999/"]
)
async def test_an_invalid_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(Refused, match="the AMQP URL "):
        async with OutplanClient(url, timeout=60):
            pass
    with pytest.raises(Refused, match="the AMQP URL "):
        async with events(url):
            pass


async def test_a_missing_virtual_host_is_named(deployment: Deployment, world: World) -> None:
    wrong = URL(deployment.amqp_url).with_path("/nowhere")
    with pytest.raises(Refused, match="vhost nowhere not found"):
        async with OutplanClient(str(wrong), prefix=deployment.prefix):
            pass


async def test_send_returns_once_the_broker_has_confirmed(
    deployment: Deployment, world: World
) -> None:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
        sent = await client.send(Request.create(**create_fields()))
    assert await world.count_waiting() == 1
    async with run_worker(deployment):
        assert (await world.wait_for_event(sent))["version"] == 1


async def test_a_call_waits_for_a_full_command_queue_and_names_it_on_timeout(
    servers: Servers, deployment: Deployment, worker: WorkerProcess
) -> None:
    ctl, queue = servers.rabbitmq.ctl, f"{deployment.prefix}.commands"
    rules = '{"max-length": 5, "overflow": "reject-publish"}'
    await asyncio.to_thread(ctl, "set_policy", "--apply-to", "queues", queue, queue, rules)
    worker.signal(signal.SIGSTOP)
    refused: list[Request] = []
    troubles: set[str] = set()
    async with (
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=1) as hasty,
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client,
    ):
        while len(refused) < 3:
            request = Request.create(**create_fields())
            try:
                await hasty.send(request)
            except OutcomeUnknown as error:
                refused.append(request)
                troubles.add(error.trouble)
        asking = [asyncio.create_task(client.ask(request)) for request in refused]
        worker.signal(signal.SIGCONT)
        results = await asyncio.gather(*asking)
    await asyncio.to_thread(ctl, "clear_policy", queue)
    assert troubles == {
        "the broker nacked the command: find the full queue with rabbitmqctl list_queues; "
        "empty it or raise its limit"
    }
    assert [(r.status, r.duplicate) for r in results] == [("accepted", False)] * 3


async def test_send_many_yields_one_result_a_command_in_order(client: OutplanClient) -> None:
    id_ = str(uuid4())

    async def requests() -> AsyncIterator[Request]:
        yield Request.create(**create_fields(id=id_))
        yield Request.create(**create_fields(name=""))
        # send_many sends one outplan's commands one at a time.
        for n in range(50):
            yield Request.update(id_, name=f"name {n}", expected_version=n + 1)
        yield Request.update(id_, name="name 49")
        yield Request.delete(str(uuid4()))

    done: list[int] = []
    results = [
        r async for r in client.send_many(requests(), progress=lambda p: done.append(p.done))
    ]

    assert [r.status for r in results] == (
        ["accepted", "rejected"] + ["accepted"] * 50 + ["unchanged", "rejected"]
    )
    assert isinstance(results[1].error, InvalidCommand)
    assert isinstance(results[-1].error, NotFound)
    assert done == list(range(1, 55))


@pytest.mark.slow
@pytest.mark.timeout(120 + MANY // 100)
async def test_send_many_keeps_no_memory_of_finished_commands(deployment: Deployment) -> None:
    sent = finished = most = 0
    sizes: list[int] = []
    progress = asyncio.Event()

    async def wait_for_results() -> None:
        while finished < sent:
            progress.clear()
            await progress.wait()

    async def requests() -> AsyncIterator[Request]:
        nonlocal sent, most
        for _ in range(MANY):
            if sent in (1_000, MANY - 1):
                await wait_for_results()
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            sent += 1
            most = max(most, sent - finished)
            yield Request.create(**create_fields())

    # No World here: it keeps every message.
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
    ):
        with trace_memory():
            async for result in client.send_many(requests(), in_flight=100):
                finished += 1
                progress.set()
                assert result.status == "accepted"

    assert finished == MANY
    assert most <= 102  # 100 in flight, the next one, and the one whose result is being read
    # The least that could stay of a command is its id, which takes 85 bytes.
    assert sizes[1] - sizes[0] < (MANY - 1_000) * 30


@contextmanager
def trace_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def test_leaving_send_many_early_leaves_no_task_running(client: OutplanClient) -> None:
    def requests() -> Iterator[Request]:
        while True:
            yield Request.create(**create_fields())

    before = asyncio.all_tasks()
    flow = client.send_many(requests(), in_flight=10)
    async for outcome in flow:
        assert outcome.status == "accepted"
        break
    await flow.aclose()
    await client.delete(outcome.result.outplan.id)  # type: ignore[union-attr]
    assert {t for t in asyncio.all_tasks() - before if "flow" in repr(t)} == set()


async def test_a_cancelled_call_leaves_the_client_usable(
    client: OutplanClient, worker: WorkerProcess
) -> None:
    worker.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.create(**create_fields(), message_id="given up")
    worker.signal(signal.SIGCONT)
    assert (await client.create(**create_fields(), message_id="given up")).status == "accepted"

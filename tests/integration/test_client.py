"""The client against real servers: each outcome told as it is."""

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
from outplan.testing.servers import Servers
from tests.integration.proxy import proxied
from tests.support.deployment import Deployment
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import CUSTOMER, World

# OUTPLAN_TEST_MANY=1000000 shows for a million what is shown for these.
MANY = int(os.environ.get("OUTPLAN_TEST_MANY", "5000"))
SOURCE = Address(type="tel", target="+15559876543")


def an_outplan(**fields: Any) -> dict[str, Any]:
    return {"customer_id": CUSTOMER, "name": "evenings", "source": SOURCE, **fields}


@pytest.fixture
async def client(deployment: Deployment, worker: WorkerProcess) -> AsyncIterator[OutplanClient]:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as found:
        yield found


@pytest.fixture
async def trusting(deployment: Deployment, worker: WorkerProcess) -> AsyncIterator[OutplanClient]:
    """It leaves it to the worker to judge bodies."""
    async with OutplanClient(
        deployment.amqp_url, prefix=deployment.prefix, validate=False
    ) as found:
        yield found


async def test_an_outplans_life_is_told_step_by_step(client: OutplanClient, world: World) -> None:
    created = await client.create(**an_outplan(try_interval=5_000))
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


async def test_a_command_says_all_that_the_contract_asks_for(
    client: OutplanClient, world: World, worker: WorkerProcess, deployment: Deployment
) -> None:
    queue = await world.channel.declare_queue(exclusive=True)
    await queue.bind(f"{deployment.prefix}.commands", "outplan_create")
    result = await client.create(**an_outplan(), message_id="a-create")
    message = await queue.get()

    # The id that the worker derives is foretold, so that partitions keep the outplan's order.
    assert message.headers == {"outplan_id": result.outplan.id}
    assert (message.message_id, message.type) == ("a-create", "outplan_create")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.timestamp is not None
    assert json.loads(message.body)["source"] == SOURCE.model_dump()


async def test_a_command_belongs_to_the_trace_that_it_was_sent_in(
    client: OutplanClient, world: World
) -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("call") as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        asked = (await client.create(**an_outplan())).message_id
        sent = await client.send(Request.create(**an_outplan()))
        many = client.send_many([Request.create(**an_outplan())])
        ids = {asked, sent, *[verdict.request.message_id async for verdict in many]}

    await world.wait_for(lambda: world.event_ids() == ids)
    traces = [str(event.headers["traceparent"]).split("-")[1] for event in world.events]
    assert traces == [trace_id] * 3


async def test_each_rejection_is_an_error_of_its_own(client: OutplanClient) -> None:
    id_ = str(uuid4())
    await client.create(**an_outplan(id=id_), message_id=f"{id_} first")

    with pytest.raises(NotFound) as not_found:
        await client.update(str(uuid4()), name="other")
    assert (not_found.value.problem.status, not_found.value.code) == (404, "not_found")
    with pytest.raises(AlreadyExists):
        await client.create(**an_outplan(id=id_))
    with pytest.raises(MessageIdReused):
        await client.create(**an_outplan(id=id_, name="other"), message_id=f"{id_} first")
    with pytest.raises(VersionConflict) as conflict:
        await client.delete(id_, expected_version=7)
    assert conflict.value.current_version == 1


async def test_a_typing_error_costs_no_round_trip(client: OutplanClient, world: World) -> None:
    with pytest.raises(InvalidCommand) as invalid:
        await client.create(**an_outplan(dial_timeout=30, dial_timout=30_000))
    assert {e.pointer for e in invalid.value.errors} == {"/dial_timeout", "/dial_timout"}
    assert "milliseconds" in str(invalid.value)
    with pytest.raises(TooLarge):
        await client.create(**an_outplan(detail="\N{BELL}" * 65_535, id=str(uuid4())))

    # Whatever had been sent would have been rejected before this.
    await client.create(**an_outplan())
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
async def test_unvalidated_the_worker_judges(
    trusting: OutplanClient, world: World, error: type[CommandRejected], request_: Request
) -> None:
    with pytest.raises(error) as rejected:
        await trusting.ask(request_)
    assert rejected.value.problem.command_id == request_.message_id
    assert (await world.wait_for_rejected(request_.message_id)).message_id == request_.message_id


async def test_asked_again_under_the_same_id_it_is_a_duplicate(
    client: OutplanClient, world: World
) -> None:
    first = await client.create(**an_outplan(), message_id="once")
    again = await client.create(**an_outplan(), message_id="once")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.outplan == first.outplan
    assert len(await world.read_history(first.outplan.id)) == 1


async def test_one_id_asked_many_times_at_once_has_one_effect(
    client: OutplanClient, world: World
) -> None:
    asked = [client.create(**an_outplan(), message_id="at once") for _ in range(20)]
    results = await asyncio.gather(*asked)
    assert sorted(r.duplicate for r in results) == [False] + [True] * 19
    assert len(await world.read_history(results[0].outplan.id)) == 1


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_with_one_id_in_flight_each_has_its_own_confirm(
    deployment: Deployment, world: World, first: int
) -> None:
    await world.channel.queue_delete(f"{deployment.prefix}.commands")
    queue = await world.channel.declare_queue(exclusive=True)
    await queue.bind(f"{deployment.prefix}.commands", "outplan_create")
    both = [
        Request.create(**an_outplan(), message_id="one"),
        Request.delete(str(uuid4()), message_id="one"),
    ]
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=1) as client:
        sending = [client.send(both[first]), client.send(both[1 - first])]
        found = await asyncio.gather(*sending, return_exceptions=True)
    assert found[first] == "one"
    assert isinstance(found[1 - first], OutcomeUnknown)
    assert "NO_ROUTE" in str(found[1 - first])


async def test_a_slow_answer_is_asked_for_again_without_a_second_effect(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with OutplanClient(
        deployment.amqp_url, prefix=deployment.prefix, resend_after=0.1
    ) as client:
        worker.signal(signal.SIGSTOP)
        asking = asyncio.create_task(client.create(**an_outplan(), message_id="slow"))
        copies = await world.channel.declare_queue(exclusive=True)
        await copies.bind(f"{deployment.prefix}.commands", "#")
        async with copies.iterator(no_ack=True) as sent:
            for _ in range(2):
                assert (await anext(sent)).message_id == "slow"
        worker.signal(signal.SIGCONT)
        result = await asking

    assert result.status == "accepted"
    assert [e["_id"] for e in await world.read_history(result.outplan.id)] == ["slow"]


async def test_without_an_answer_the_outcome_is_unknown_and_can_be_asked_for_later(
    deployment: Deployment, world: World
) -> None:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=0.3) as hurried:
        with pytest.raises(OutcomeUnknown, match="no worker has answered") as unknown:
            await hurried.create(**an_outplan())
    id_ = unknown.value.message_id
    assert id_ in str(unknown.value)

    async with run_worker(deployment):
        await world.wait_for_event(id_)
        async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
            assert (await client.create(**an_outplan(), message_id=id_)).duplicate is True


async def test_what_no_queue_takes_is_no_verdict(deployment: Deployment, world: World) -> None:
    await world.channel.queue_delete(f"{deployment.prefix}.commands")
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=0.3) as client:
        with pytest.raises(OutcomeUnknown, match="NO_ROUTE"):
            await client.create(**an_outplan())
        with pytest.raises(OutcomeUnknown, match="NO_ROUTE"):
            await client.send(Request.create(**an_outplan()))


async def test_a_client_that_is_not_open_says_so_at_once(
    deployment: Deployment, world: World
) -> None:
    client = OutplanClient(deployment.amqp_url, prefix=deployment.prefix)
    for _ in ("not yet", "no more"):
        with pytest.raises(RuntimeError, match="not open: call it inside of `async with`"):
            await client.create(**an_outplan())
        with pytest.raises(RuntimeError, match="not open"):
            await client.send(Request.create(**an_outplan()))
        async with client:
            with pytest.raises(RuntimeError, match="open already"):
                async with client:
                    pass
            await client.send(Request.create(**an_outplan()))


async def test_a_call_in_flight_when_the_client_closes_ends_as_unknown_at_once(
    deployment: Deployment, world: World
) -> None:
    copies = await world.channel.declare_queue(exclusive=True)
    await copies.bind(f"{deployment.prefix}.commands", "#")
    async with copies.iterator(no_ack=True) as sent:
        async with OutplanClient(
            deployment.amqp_url, prefix=deployment.prefix, timeout=60
        ) as client:
            asking = asyncio.create_task(client.create(**an_outplan()))
            await anext(sent)
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown, match="the client was closed"):
                await asking


async def test_calls_that_wait_for_a_connection_when_the_client_closes_end_as_unknown_at_once(
    deployment: Deployment, world: World
) -> None:
    async with proxied(deployment.amqp_url) as proxy:
        async with OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client:
            proxy.budget = lambda: 0
            proxy.cut()
            await proxy.until(lambda: proxy.cuts >= 3)
            calls = [client.create(**an_outplan()), client.send(Request.create(**an_outplan()))]
            calling = [asyncio.create_task(call) for call in calls]
            await asyncio.wait(calling, timeout=0)
        async with asyncio.timeout(5):
            for call in calling:
                with pytest.raises(OutcomeUnknown, match="the client was closed"):
                    await call


async def test_a_broker_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"0\.2 s: .*[Cc]onnect"):
        async with OutplanClient("amqp://guest:guest@127.0.0.1:1/", timeout=0.2):
            pass


async def test_a_place_without_a_service_is_said_to_be_that(
    deployment: Deployment, world: World
) -> None:
    with pytest.raises(Unreachable, match=r"no exchange 'nowhere\.commands'"):
        async with OutplanClient(deployment.amqp_url, prefix="nowhere", timeout=0.5):
            pass


async def test_wrong_credentials_are_said_at_once(deployment: Deployment, world: World) -> None:
    wrong = URL(deployment.amqp_url).with_password("wrong")
    with pytest.raises(Refused, match="ACCESS_REFUSED"):
        async with OutplanClient(str(wrong), prefix=deployment.prefix, timeout=60):
            pass


async def test_who_may_not_publish_is_told_that(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    servers.rabbitmq.ctl("add_user", deployment.prefix, "secret")
    servers.rabbitmq.ctl("set_permissions", "-p", "/", deployment.prefix, ".*", "", ".*")
    url = URL(deployment.amqp_url).with_user(deployment.prefix).with_password("secret")
    async with OutplanClient(str(url), prefix=deployment.prefix, timeout=1) as client:
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await client.create(**an_outplan())
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await client.send(Request.create(**an_outplan()))
        verdict = await anext(client.send_many([Request.create(**an_outplan())]))
        assert "ACCESS_REFUSED" in str(verdict.error)


async def test_what_is_refused_only_when_it_is_sent_again_is_no_verdict(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    async def allow(write: str) -> None:
        rules = (deployment.prefix, ".*", write, ".*")
        await asyncio.to_thread(servers.rabbitmq.ctl, "set_permissions", "-p", "/", *rules)

    await asyncio.to_thread(servers.rabbitmq.ctl, "add_user", deployment.prefix, "secret")
    await allow(".*")
    url = URL(deployment.amqp_url).with_user(deployment.prefix).with_password("secret")
    copies = await world.channel.declare_queue(exclusive=True)
    await copies.bind(f"{deployment.prefix}.commands", "#")
    async with (
        proxied(str(url)) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=15) as client,
        copies.iterator(no_ack=True) as sent,
    ):
        asking = asyncio.create_task(client.create(**an_outplan()))
        await anext(sent)
        await allow("")
        proxy.cut()
        with pytest.raises(OutcomeUnknown, match="ACCESS_REFUSED"):
            await asking


async def test_a_call_during_an_outage_says_what_the_outage_is(
    deployment: Deployment, world: World
) -> None:
    async with (
        proxied(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=1) as client,
    ):
        proxy.budget = lambda: 0
        proxy.cut()
        await proxy.until(lambda: proxy.cuts >= 3)
        with pytest.raises(OutcomeUnknown, match="Connection"):
            await client.create(**an_outplan())


async def test_an_alarm_is_waited_out_and_named_where_it_lasts(
    servers: Servers, deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with (
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=2) as hurried,
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as patient,
    ):
        servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
        try:
            asking = asyncio.create_task(patient.create(**an_outplan(), message_id="alarmed"))
            with pytest.raises(OutcomeUnknown, match="does not confirm it; in an alarm"):
                await hurried.create(**an_outplan())
        finally:
            servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
        result = await asking

    assert result.status == "accepted"
    assert len(await world.read_history(result.outplan.id)) == 1


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost/", "amqp://", "amqp://h:99999/"]
)
async def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(Refused, match="address should be"):
        async with OutplanClient(url, timeout=60):
            pass
    with pytest.raises(Refused, match="address should be"):
        async with events(url):
            pass


async def test_a_virtual_host_that_is_not_there_is_said_to_be_that(
    deployment: Deployment, world: World
) -> None:
    wrong = URL(deployment.amqp_url).with_path("/nowhere")
    with pytest.raises(Unreachable, match="virtual host '/nowhere'"):
        async with OutplanClient(str(wrong), prefix=deployment.prefix, timeout=0.5):
            pass


async def test_a_command_sent_without_waiting_is_with_the_broker(
    deployment: Deployment, world: World
) -> None:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
        sent = await client.send(Request.create(**an_outplan()))
    assert await world.count_waiting() == 1
    async with run_worker(deployment):
        assert (await world.wait_for_event(sent))["version"] == 1


async def test_a_full_command_queue_is_waited_for_and_named_where_it_lasts(
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
            request = Request.create(**an_outplan())
            try:
                await hasty.send(request)
            except OutcomeUnknown as error:
                refused.append(request)
                troubles.add(error.trouble)
        asking = [asyncio.create_task(client.ask(request)) for request in refused]
        worker.signal(signal.SIGCONT)
        results = await asyncio.gather(*asking)
    await asyncio.to_thread(ctl, "clear_policy", queue)
    assert troubles == {"the broker refuses commands: is their queue full?"}
    assert [(r.status, r.duplicate) for r in results] == [("accepted", False)] * 3


async def test_each_of_many_has_its_own_verdict_in_the_order_given(client: OutplanClient) -> None:
    id_ = str(uuid4())

    async def requests() -> AsyncIterator[Request]:
        yield Request.create(**an_outplan(id=id_))
        yield Request.create(**an_outplan(name=""))
        # Sent in turn for one outplan, however many are in flight.
        for n in range(50):
            yield Request.update(id_, name=f"name {n}", expected_version=n + 1)
        yield Request.update(id_, name="name 49")
        yield Request.delete(str(uuid4()))

    told: list[int] = []
    verdicts = [
        v async for v in client.send_many(requests(), progress=lambda p: told.append(p.done))
    ]

    assert [v.status for v in verdicts] == (
        ["accepted", "rejected"] + ["accepted"] * 50 + ["unchanged", "rejected"]
    )
    assert isinstance(verdicts[1].error, InvalidCommand)
    assert isinstance(verdicts[-1].error, NotFound)
    assert told == list(range(1, 55))


@pytest.mark.timeout(120 + MANY // 100)
async def test_memory_stays_flat_however_many_are_sent(deployment: Deployment) -> None:
    given = taken = most = 0
    sizes: list[int] = []
    taking = asyncio.Event()

    async def none_in_flight() -> None:
        while taken < given:
            taking.clear()
            await taking.wait()

    async def requests() -> AsyncIterator[Request]:
        nonlocal given, most
        for _ in range(MANY):
            if given in (1_000, MANY - 1):
                await none_in_flight()
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            given += 1
            most = max(most, given - taken)
            yield Request.create(**an_outplan())

    # No witness here: it keeps whatever it hears.
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
    ):
        with traced_memory():
            async for verdict in client.send_many(requests(), in_flight=100):
                taken += 1
                taking.set()
                assert verdict.status == "accepted"

    assert taken == MANY
    assert most <= 102  # in flight, one that waits for a place, and the one that is taken
    # Were anything kept of a command, it would be an id at the least, and that has 85 bytes.
    assert sizes[1] - sizes[0] < (MANY - 1_000) * 30


@contextmanager
def traced_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def test_a_flow_that_is_left_early_leaves_nothing_running(client: OutplanClient) -> None:
    def requests() -> Iterator[Request]:
        while True:
            yield Request.create(**an_outplan())

    before = asyncio.all_tasks()
    flow = client.send_many(requests(), in_flight=10)
    async for verdict in flow:
        assert verdict.status == "accepted"
        break
    await flow.aclose()
    await client.delete(verdict.result.outplan.id)  # type: ignore[union-attr]
    assert {t for t in asyncio.all_tasks() - before if "flow" in repr(t)} == set()


async def test_a_call_that_is_cancelled_leaves_the_client_usable(
    client: OutplanClient, worker: WorkerProcess
) -> None:
    worker.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.create(**an_outplan(), message_id="given up")
    worker.signal(signal.SIGCONT)
    assert (await client.create(**an_outplan(), message_id="given up")).status == "accepted"

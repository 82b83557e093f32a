"""Test SyncOutplanClient and sync_events: the asynchronous client's scenarios, and threads."""

import asyncio
import gc
import subprocess
import sys
import threading
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from outplan.client import (
    Event,
    OutcomeUnknown,
    Reconnected,
    Request,
    SyncOutplanClient,
    sync_events,
)
from outplan.testing import Deployment
from tests.integration import test_client, test_client_events
from tests.integration.test_client import create_fields
from tests.support.balancer import run_balancer
from tests.support.events import encode_event, publish_events
from tests.support.forks import call_in_fork
from tests.support.threaded import ThreadedClient, threaded_events
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, World

SCENARIOS = [
    test_client.test_create_update_and_delete_return_each_version,
    test_client.test_a_command_carries_every_property_of_the_contract,
    test_client.test_a_command_carries_the_current_trace_context,
    test_client.test_each_problem_code_raises_its_own_error,
    test_client.test_an_invalid_command_is_rejected_without_a_round_trip,
    test_client.test_a_repeated_message_id_returns_a_duplicate,
    test_client.test_concurrent_commands_with_one_message_id_have_one_effect,
    test_client.test_a_command_is_resent_without_a_second_effect_when_the_reply_is_late,
    test_client.test_without_a_reply_the_outcome_is_unknown_and_a_resend_finds_it,
    test_client.test_an_unroutable_command_has_an_unknown_outcome,
    test_client.test_closing_the_client_ends_calls_in_flight_as_unknown,
    test_client.test_a_missing_broker_is_unreachable,
    test_client.test_a_missing_exchange_is_named,
    test_client.test_wrong_credentials_are_refused_at_once,
    test_client.test_an_invalid_url_is_refused_at_once,
    test_client.test_send_returns_once_the_broker_has_confirmed,
    test_client.test_send_many_yields_one_result_a_command_in_order,
    test_client_events.test_an_outplans_events_arrive_in_order,
    test_client_events.test_filters_select_events_by_kind_customer_and_outplan,
    test_client_events.test_settle_acks_the_last_event_of_a_loop,
    test_client_events.test_an_event_keeps_its_raw_bytes_with_unknown_fields,
    test_client_events.test_repeats_are_dropped_and_a_gap_is_reported,
    test_client_events.test_seen_versions_are_dropped_and_count_for_gaps,
    test_client_events.test_a_body_that_is_no_event_is_yielded_as_unreadable,
    test_client_events.test_an_event_is_acked_when_the_loop_takes_the_next,
    test_client_events.test_a_subscription_reconnects_and_reports_whether_events_were_lost,
    test_client_events.test_closing_a_stream_ends_a_waiting_loop,
    test_client_events.test_closing_a_stream_ends_a_waiting_loop_while_the_broker_is_away,
    test_client_events.test_a_subscriber_with_wrong_credentials_is_refused_at_once,
]
globals().update({scenario.__name__: scenario for scenario in SCENARIOS})


@pytest.fixture(autouse=True)
def run_scenarios_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_client, "OutplanClient", ThreadedClient)
    monkeypatch.setattr(test_client_events, "events", threaded_events)


@pytest.fixture
async def client(deployment: Deployment, worker: WorkerProcess) -> AsyncIterator[ThreadedClient]:
    """Replace the asynchronous client in the scenarios."""
    async with ThreadedClient(deployment.amqp_url, prefix=deployment.prefix) as client:
        yield client


@pytest.fixture
def sync_client(deployment: Deployment, worker: WorkerProcess) -> Iterator[SyncOutplanClient]:
    with SyncOutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
        yield client


def request(**fields: Any) -> Request:
    return Request.create(**create_fields(**fields))


def test_several_threads_share_a_client(sync_client: SyncOutplanClient) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: sync_client.create(**create_fields()), range(100)))
    assert [result.status for result in results] == ["accepted"] * 100
    assert len({result.outplan.id for result in results}) == 100


async def test_a_client_works_where_an_event_loop_runs(sync_client: SyncOutplanClient) -> None:
    assert asyncio.get_running_loop().is_running()
    assert sync_client.create(**create_fields()).status == "accepted"
    assert [r.status for r in sync_client.send_many([request()])] == ["accepted"]


def test_a_client_can_be_closed_twice_and_opened_again(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    client = SyncOutplanClient(deployment.amqp_url, prefix=deployment.prefix)
    client.close()
    for _ in range(2):
        with client:
            assert client.create(**create_fields()).status == "accepted"
            with pytest.raises(RuntimeError, match="the client is open already"):
                client.open()
        client.close()
        for call in (lambda: client.ask(request()), lambda: list(client.send_many([request()]))):
            with pytest.raises(RuntimeError, match="is not open: call it inside of `with`"):
                call()
    assert not [thread for thread in threading.enumerate() if thread.name == "outplan-client"]


def test_requests_and_progress_run_in_the_callers_thread(sync_client: SyncOutplanClient) -> None:
    threads: set[int] = set()

    def requests() -> Iterator[Request]:
        for n in range(20):
            threads.add(threading.get_ident())
            # A generator may use the client itself.
            id_ = sync_client.create(**create_fields()).outplan.id
            yield Request.update(id_, name=f"name {n}" if n != 7 else "")

    done: list[int] = []

    def report(progress: Any) -> None:
        threads.add(threading.get_ident())
        done.append(progress.done)

    results = sync_client.send_many(requests(), in_flight=5, progress=report)
    statuses = [result.status for result in results]
    assert statuses == ["accepted"] * 7 + ["rejected"] + ["accepted"] * 12
    assert done == list(range(1, 21))
    assert threads == {threading.get_ident()}


def test_leaving_send_many_early_leaves_the_client_usable(sync_client: SyncOutplanClient) -> None:
    def requests() -> Iterator[Request]:
        while True:
            yield request()

    for result in sync_client.send_many(requests(), in_flight=10):
        assert result.status == "accepted"
        break
    gc.collect()
    assert sync_client.create(**create_fields()).status == "accepted"
    with pytest.raises(ValueError, match="in_flight is at least 1"):
        list(sync_client.send_many([request()], in_flight=0))


async def test_closing_in_another_thread_ends_send_many_as_unknown(
    deployment: Deployment, world: World
) -> None:
    copies = await world.channel.declare_queue(exclusive=True)
    await copies.bind(f"{deployment.prefix}.commands", "#")
    client = SyncOutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=60)
    await to_thread(client.open)
    many = [request() for _ in range(3)]
    asking = asyncio.create_task(to_thread(lambda: list(client.send_many(many))))
    async with copies.iterator(no_ack=True) as sent:
        for _ in many:
            await anext(sent)
    await to_thread(client.close)
    async with asyncio.timeout(10):
        results = await asking
    assert [type(result.error) for result in results] == [OutcomeUnknown] * 3
    assert all("the client was closed" in str(result.error) for result in results)


def test_a_client_is_refused_after_a_fork_and_opens_anew_there(
    sync_client: SyncOutplanClient,
) -> None:
    def ask() -> None:
        sync_client.ask(request())

    def open_anew() -> None:
        sync_client.close()
        with sync_client:
            ask()

    refused = "RuntimeError: the client was opened in process"
    assert call_in_fork(ask).startswith(refused)
    assert call_in_fork(lambda: list(sync_client.send_many([request()]))).startswith(refused)
    assert call_in_fork(sync_client.open).startswith(refused)
    assert call_in_fork(open_anew) == ""
    ask()


def test_a_program_ends_without_closing_also_in_a_fork(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    program = f"""
import os, sys, warnings
from outplan.client import Request, SyncOutplanClient, sync_events
warnings.simplefilter("ignore", DeprecationWarning)
client = SyncOutplanClient({deployment.amqp_url!r}, prefix={deployment.prefix!r}).open()
stream = sync_events({deployment.amqp_url!r}, prefix={deployment.prefix!r}).__enter__()
many = client.send_many(
    Request.create(customer_id={CUSTOMER!r}, name="x",
                   source={{"type": "extension", "target": "1"}})
    for _ in range(10))
print(next(many).status, flush=True)
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(next(stream).type, flush=True)
print("parent" if child else "child")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["accepted", "child", "outplan_created", "parent"]


async def test_an_exception_in_on_reconnect_loses_no_event(
    deployment: Deployment, world: World, queue: str
) -> None:
    threads: list[str] = []

    def fail_once(how: Reconnected) -> None:
        threads.append(threading.current_thread().name)
        assert how.lossless
        if len(threads) == 1:
            raise OSError("no database")

    async with (
        run_balancer(deployment.amqp_url) as proxy,
        threaded_events(
            proxy.url, prefix=deployment.prefix, queue=queue, on_reconnect=fail_once
        ) as stream,
    ):
        await publish_events(world, encode_event(1))
        assert (await anext(stream)).version == 1
        taking = asyncio.create_task(anext(stream))
        proxy.disconnect()
        with pytest.raises(OSError, match="no database"):
            await taking
        await publish_events(world, encode_event(2))
        assert (await anext(stream)).version == 2
        await stream.settle()
    assert [name for name in threads if name.startswith("outplan")] == []
    async with threaded_events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as again:
        await publish_events(world, encode_event(3))
        assert (await anext(again)).version == 3


def test_a_stream_is_used_in_its_block_and_its_process(
    deployment: Deployment, sync_client: SyncOutplanClient
) -> None:
    stream = sync_events(deployment.amqp_url, prefix=deployment.prefix)
    with pytest.raises(RuntimeError, match="stream of events is not open"):
        next(stream)
    with stream:
        sync_client.create(**create_fields())
        for call in (lambda: next(stream), stream.settle):
            raised = call_in_fork(call)
            assert raised.startswith("RuntimeError: the stream of events was opened in process")
        assert call_in_fork(stream.close) == ""
        assert isinstance(next(stream), Event)
    stream.close()
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="stream was closed: subscribe anew"):
        stream.__enter__()

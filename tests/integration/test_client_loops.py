"""Test that a client opened in one event loop or process refuses to be used in another, at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from outplan.client import Events, OutplanClient, Request, events
from outplan.contract.messages import Address
from outplan.testing import Deployment
from tests.support.forks import call_in_fork
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, World

SOURCE = Address(type="tel", target="+15559876543")


def request() -> Request:
    return Request.create(customer_id=CUSTOMER, name="evenings", source=SOURCE)


async def ask(client: OutplanClient) -> None:
    await client.ask(request())


async def send(client: OutplanClient) -> None:
    await client.send(request())


async def send_many(client: OutplanClient) -> None:
    async for result in client.send_many([request()]):
        assert result.status == "accepted"


async def close(client: OutplanClient) -> None:
    await client.__aexit__(None, None, None)


async def enter(client: OutplanClient) -> None:
    await client.__aenter__()


async def take(stream: Events) -> None:
    await anext(stream)


CLIENT_CALLS = pytest.mark.parametrize("call", [ask, send, send_many, close, enter])
STREAM_CALLS = pytest.mark.parametrize("call", [take, Events.settle, Events.aclose])
ClientCall = Callable[[OutplanClient], Awaitable[None]]
StreamCall = Callable[[Events], Awaitable[None]]


@contextmanager
def raises_at_once(match: str) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=match) as raised:
        yield
    assert time.monotonic() - started < 2
    assert "<" not in str(raised.value), "the text shows an internal object"


async def run(call: Callable[[Any], Awaitable[None]], argument: object) -> None:
    await call(argument)


def new_client(deployment: Deployment) -> OutplanClient:
    return OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=60)


@pytest.fixture
async def stream(deployment: Deployment, world: World) -> AsyncIterator[Events]:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        yield stream


@CLIENT_CALLS
def test_a_client_opened_in_an_earlier_run_is_refused(
    deployment: Deployment, world: World, call: ClientCall
) -> None:
    client = new_client(deployment)
    asyncio.run(enter(client))
    with raises_at_once("opened in another event loop, which is closed now: open one in each"):
        asyncio.run(run(call, client))


def test_a_client_can_be_opened_anew_in_each_run(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    client = new_client(deployment)

    async def open_and_ask() -> None:
        async with client:
            await ask(client)

    for _ in range(2):
        asyncio.run(open_and_ask())


@CLIENT_CALLS
def test_a_client_opened_in_a_loop_that_pauses_is_refused(
    deployment: Deployment, world: World, call: ClientCall
) -> None:
    client = new_client(deployment)
    with asyncio.Runner() as of_session, asyncio.Runner() as of_test:
        of_session.run(enter(client))
        with raises_at_once("another event loop, which belongs to the thread 'MainThread'"):
            of_test.run(run(call, client))
        of_session.run(send(client))
        of_session.run(close(client))


@CLIENT_CALLS
async def test_a_client_is_refused_in_another_threads_loop(
    client: OutplanClient, call: ClientCall
) -> None:
    with raises_at_once("another event loop, which belongs to the thread 'MainThread'"):
        await asyncio.to_thread(asyncio.run, run(call, client))
    await ask(client)


@pytest.mark.parametrize("call", [ask, send, send_many, enter])
async def test_a_client_is_refused_after_a_fork(client: OutplanClient, call: ClientCall) -> None:
    raised = await asyncio.to_thread(call_in_fork, lambda: asyncio.run(run(call, client)))
    assert raised.startswith("RuntimeError: the client was opened in process")
    assert "open the client after the fork" in raised
    await ask(client)


async def test_closing_after_a_fork_leaves_the_parents_connections_alone(
    client: OutplanClient, stream: Events
) -> None:
    def close_both() -> None:
        asyncio.run(close(client))
        asyncio.run(run(Events.aclose, stream))

    assert await asyncio.to_thread(call_in_fork, close_both) == ""
    await ask(client)
    await take(stream)


@STREAM_CALLS
def test_a_stream_opened_in_an_earlier_run_is_refused(
    deployment: Deployment, world: World, call: StreamCall
) -> None:
    stream = events(deployment.amqp_url, prefix=deployment.prefix)
    asyncio.run(run(Events.__aenter__, stream))
    with raises_at_once("stream of events was opened in another event loop, which is closed now"):
        asyncio.run(run(call, stream))


@STREAM_CALLS
async def test_a_stream_is_refused_in_another_threads_loop(
    client: OutplanClient, stream: Events, call: StreamCall
) -> None:
    with raises_at_once("another event loop, which belongs to the thread 'MainThread'"):
        await asyncio.to_thread(asyncio.run, run(call, stream))
    await ask(client)
    await take(stream)


@pytest.mark.parametrize("call", [take, Events.settle])
async def test_a_stream_is_refused_after_a_fork(
    client: OutplanClient, stream: Events, call: StreamCall
) -> None:
    raised = await asyncio.to_thread(call_in_fork, lambda: asyncio.run(run(call, stream)))
    assert raised.startswith("RuntimeError: the stream of events was opened in process")
    await ask(client)
    await take(stream)


async def test_send_many_is_refused_in_another_loop_than_its_first(client: OutplanClient) -> None:
    results = client.send_many([request(), request()])
    await anext(results)
    for call in (anext, type(results).aclose):
        with raises_at_once("iteration over send_many was opened in another event loop"):
            await asyncio.to_thread(asyncio.run, run(call, results))
    assert [result.status async for result in results] == ["accepted"]


def test_send_many_does_not_look_finished_in_a_later_run(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    client = new_client(deployment)
    results = client.send_many([request(), request()])

    async def begin() -> None:
        async with client:
            await anext(results)

    asyncio.run(begin())
    with raises_at_once(
        "iteration over send_many was opened in another event loop, which is close"
    ):
        asyncio.run(run(anext, results))

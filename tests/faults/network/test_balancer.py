"""Check the balancer: its choice of servers, its forwarding, and each fault that it can cause."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import pytest

from tests.support.balancer import Balancer, run_balancer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EchoServer:
    """A server that sends its name and then echoes; `received` is everything it received."""

    def __init__(self, name: bytes, port: int) -> None:
        self.name = name
        self.url = f"amqp://127.0.0.1:{port}/"
        self.received = bytearray()
        self.clients: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.append(writer)
        try:
            while data := await reader.read(1 << 16):
                if not self.received:
                    writer.write(self.name)
                self.received += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def run_echo_server(name: bytes = b"") -> AsyncIterator[EchoServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo = EchoServer(name, listener.getsockname()[1])
        server = await asyncio.start_server(echo.serve, sock=listener)
        try:
            yield echo
        finally:
            server.close()
            for client in echo.clients:
                client.transport.abort()


@asynccontextmanager
async def connect(balancer: Balancer) -> AsyncIterator[Streams]:
    port = int(balancer.url.split(":")[2].strip("/"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(streams: Streams, sent: bytes, length: int | None = None) -> bytes:
    streams[1].write(sent)
    async with asyncio.timeout(5):
        return await streams[0].readexactly(len(sent) if length is None else length)


async def is_silent(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.2):
            return await reader.read(1) is None
    except TimeoutError:
        return True


async def is_closed(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def test_connections_go_to_the_servers_in_turn() -> None:
    async with (
        run_echo_server(b"1") as one,
        run_echo_server(b"2") as two,
        run_balancer(one.url, two.url) as balancer,
    ):
        answers = []
        for _ in range(2):
            async with connect(balancer) as streams:
                answers.append(await exchange(streams, b"x", 2))
        assert answers == [b"1x", b"2x"]


async def test_a_server_that_refuses_connections_is_skipped() -> None:
    async with run_echo_server() as gone:
        pass
    async with run_echo_server(b"2") as two, run_balancer(gone.url, two.url) as balancer:
        for _ in range(2):
            two.received.clear()
            async with connect(balancer) as streams:
                assert await exchange(streams, b"x", 2) == b"2x"


async def test_a_server_that_accepts_and_stays_silent_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as paused:
        url = f"amqp://127.0.0.1:{paused.getsockname()[1]}/"
        async with (
            run_echo_server(b"2") as two,
            run_balancer(url, two.url, patience=0.2) as balancer,
        ):
            async with connect(balancer) as streams:
                assert await exchange(streams, b"hello", 6) == b"2hello"
            assert two.received == b"hello"


async def test_the_caller_is_disconnected_if_no_server_answers() -> None:
    async with run_echo_server() as gone:
        pass
    async with run_balancer(gone.url, gone.url) as balancer, connect(balancer) as (reader, writer):
        writer.write(b"x")
        assert await is_closed(reader)


async def test_many_bytes_arrive_complete_in_order_and_fast() -> None:
    sent = b"".join(n.to_bytes(4, "big") for n in range(5_000_000))
    async with (
        run_echo_server() as one,
        run_echo_server() as two,
        run_balancer(one.url, two.url) as balancer,
        connect(balancer) as streams,
    ):
        started = perf_counter()
        streams[1].write(sent)
        async with asyncio.timeout(20):
            assert await streams[0].readexactly(len(sent)) == sent
        rate = 2 * len(sent) / (perf_counter() - started)
        assert rate > 10e6, f"{rate / 1e6:.0f} MB/s"


async def test_disconnect_aborts_both_sides_of_all_connections_or_of_some() -> None:
    async with run_echo_server() as one, run_balancer(one.url) as balancer:
        async with connect(balancer) as first, connect(balancer) as second:
            assert await exchange(first, b"x") + await exchange(second, b"y") == b"xy"
            balancer.disconnect(1)
            await balancer.wait_for(lambda: balancer.open_count == 1)
            balancer.disconnect()
            assert await is_closed(first[0])
            assert await is_closed(second[0])
            await asyncio.wait_for(one.ended.wait(), 5)
        assert balancer.disconnects == 2


async def test_a_connection_is_disconnected_after_its_budget_of_bytes() -> None:
    async with run_echo_server() as one, run_balancer(one.url) as balancer:
        balancer.budget = lambda: 10
        async with connect(balancer) as streams:
            assert await exchange(streams, b"12345") == b"12345"
            streams[1].write(b"6")
            assert await is_closed(streams[0])


@pytest.mark.parametrize(("direction", "received"), [("up", b"a"), ("both", b"a"), ("down", b"ab")])
async def test_a_stall_holds_bytes_of_its_direction_and_loses_none(
    direction: str, received: bytes
) -> None:
    async with (
        run_echo_server() as one,
        run_balancer(one.url) as balancer,
        connect(balancer) as streams,
    ):
        assert await exchange(streams, b"a") == b"a"
        balancer.stall(direction)  # type: ignore[arg-type]
        streams[1].write(b"b")
        assert await is_silent(streams[0])
        assert one.received == received
        balancer.resume()
        assert await exchange(streams, b"c", 2) == b"bc"


async def test_a_stall_holds_new_connections_too() -> None:
    async with run_echo_server() as one, run_balancer(one.url) as balancer:
        balancer.stall()
        async with connect(balancer) as streams:
            streams[1].write(b"a")
            assert await is_silent(streams[0])
            assert not one.clients
            balancer.release()
            assert await exchange(streams, b"b", 2) == b"ab"


async def test_a_stall_pauses_the_sender_once_a_megabyte_is_held() -> None:
    async with (
        run_echo_server() as one,
        run_balancer(one.url) as balancer,
        connect(balancer) as streams,
    ):
        assert await exchange(streams, b"a") == b"a"
        balancer.stall()
        streams[1].write(bytes(50_000_000))
        await balancer.wait_for(lambda: balancer.held_bytes > 1 << 20)
        assert await is_silent(streams[0])
        assert balancer.held_bytes < 3 << 20
        balancer.release()
        async with asyncio.timeout(20):
            await streams[0].readexactly(50_000_000)


async def test_half_open_servers_receive_the_held_bytes_at_the_release() -> None:
    async with run_echo_server() as one, run_balancer(one.url) as balancer:
        async with connect(balancer) as streams:
            assert await exchange(streams, b"a") == b"a"
            balancer.stall("up")
            streams[1].write(b"late")
            await balancer.wait_for(lambda: balancer.held_bytes == 4)
            balancer.leave_half_open()
            assert await is_closed(streams[0])
        async with connect(balancer) as others:
            assert await exchange(others, b"b") == b"b"
            assert one.received == b"ab"
            balancer.stall()
            balancer.resume()
            assert await exchange(others, b"x") == b"x"
            assert not one.ended.is_set()
            balancer.release()
            await asyncio.wait_for(one.ended.wait(), 5)
            assert one.received == b"abxlate"
            assert await exchange(others, b"c") == b"c"


async def test_half_open_callers_receive_nothing_until_the_release() -> None:
    async with (
        run_echo_server() as one,
        run_balancer(one.url) as balancer,
        connect(balancer) as streams,
    ):
        assert await exchange(streams, b"a") == b"a"
        balancer.leave_half_open("servers")
        await asyncio.wait_for(one.ended.wait(), 5)
        streams[1].write(b"b")
        assert await is_silent(streams[0])
        balancer.release()
        assert await is_closed(streams[0])

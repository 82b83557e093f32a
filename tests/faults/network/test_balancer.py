"""The balancer: what it passes on, what it skips, and each thing that it does to connections."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import pytest

from tests.support.balancer import Balancer, balanced

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that says its name and then what it hears; `heard` is all of that."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.heard = bytearray()
        self.callers: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers.append(writer)
        try:
            while data := await reader.read(1 << 16):
                if not self.heard:
                    writer.write(self.name)
                self.heard += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def echo(name: bytes = b"") -> AsyncIterator[Echo]:
    served = Echo(name)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.url = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        yield served
    finally:
        server.close()
        for caller in served.callers:
            caller.transport.abort()


@asynccontextmanager
async def called(balancer: Balancer) -> AsyncIterator[Streams]:
    port = int(balancer.url.split(":")[2].strip("/"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(streams: Streams, said: bytes, length: int | None = None) -> bytes:
    streams[1].write(said)
    async with asyncio.timeout(5):
        return await streams[0].readexactly(len(said) if length is None else length)


async def silent(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.2):
            return await reader.read(1) is None
    except TimeoutError:
        return True


async def at_end(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def test_connections_go_to_the_servers_in_turn() -> None:
    async with echo(b"1") as one, echo(b"2") as two, balanced(one.url, two.url) as balancer:
        said = []
        for _ in range(2):
            async with called(balancer) as streams:
                said.append(await answer(streams, b"x", 2))
        assert said == [b"1x", b"2x"]


async def test_a_server_that_refuses_is_skipped() -> None:
    async with echo() as gone:
        pass
    async with echo(b"2") as two, balanced(gone.url, two.url) as balancer:
        for _ in range(2):
            two.heard.clear()
            async with called(balancer) as streams:
                assert await answer(streams, b"x", 2) == b"2x"


async def test_a_server_that_takes_the_connection_and_stays_silent_is_skipped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as paused:
        url = f"amqp://127.0.0.1:{paused.getsockname()[1]}/"
        async with echo(b"2") as two, balanced(url, two.url, patience=0.2) as balancer:
            async with called(balancer) as streams:
                assert await answer(streams, b"hello", 6) == b"2hello"
            assert two.heard == b"hello"


async def test_where_no_server_is_to_be_had_the_caller_is_cut_off() -> None:
    async with echo() as gone:
        pass
    async with balanced(gone.url, gone.url) as balancer, called(balancer) as (reader, writer):
        writer.write(b"x")
        assert await at_end(reader)


async def test_many_bytes_arrive_whole_and_in_order_and_at_a_useful_rate() -> None:
    sent = b"".join(n.to_bytes(4, "big") for n in range(5_000_000))
    async with (
        echo() as one,
        echo() as two,
        balanced(one.url, two.url) as balancer,
        called(balancer) as streams,
    ):
        started = perf_counter()
        streams[1].write(sent)
        async with asyncio.timeout(20):
            assert await streams[0].readexactly(len(sent)) == sent
        rate = 2 * len(sent) / (perf_counter() - started)
        assert rate > 10e6, f"{rate / 1e6:.0f} MB/s"


async def test_a_cut_ends_both_sides_of_all_connections_or_of_so_many() -> None:
    async with echo() as one, balanced(one.url) as balancer:
        async with called(balancer) as first, called(balancer) as second:
            assert await answer(first, b"x") + await answer(second, b"y") == b"xy"
            balancer.cut(1)
            await balancer.until(lambda: balancer.open == 1)
            balancer.cut()
            assert await at_end(first[0])
            assert await at_end(second[0])
            await asyncio.wait_for(one.ended.wait(), 5)
        assert balancer.cuts == 2


async def test_a_connection_is_cut_when_its_budget_of_bytes_is_spent() -> None:
    async with echo() as one, balanced(one.url) as balancer:
        balancer.budget = lambda: 10
        async with called(balancer) as streams:
            assert await answer(streams, b"12345") == b"12345"
            streams[1].write(b"6")
            assert await at_end(streams[0])


@pytest.mark.parametrize(("way", "heard"), [("up", b"a"), ("both", b"a"), ("down", b"ab")])
async def test_a_stall_passes_nothing_that_way_and_loses_nothing(way: str, heard: bytes) -> None:
    async with echo() as one, balanced(one.url) as balancer, called(balancer) as streams:
        assert await answer(streams, b"a") == b"a"
        balancer.stall(way)  # type: ignore[arg-type]
        streams[1].write(b"b")
        assert await silent(streams[0])
        assert one.heard == heard
        balancer.resume()
        assert await answer(streams, b"c", 2) == b"bc"


async def test_a_stall_holds_back_new_connections_too() -> None:
    async with echo() as one, balanced(one.url) as balancer:
        balancer.stall()
        async with called(balancer) as streams:
            streams[1].write(b"a")
            assert await silent(streams[0])
            assert not one.callers
            balancer.release()
            assert await answer(streams, b"b", 2) == b"ab"


async def test_a_stalled_sender_has_to_wait_when_enough_is_held() -> None:
    async with echo() as one, balanced(one.url) as balancer, called(balancer) as streams:
        assert await answer(streams, b"a") == b"a"
        balancer.stall()
        streams[1].write(bytes(50_000_000))
        await balancer.until(lambda: balancer.held > 1 << 20)
        assert await silent(streams[0])
        assert balancer.held < 3 << 20
        balancer.release()
        async with asyncio.timeout(20):
            await streams[0].readexactly(50_000_000)


async def test_stranded_callers_are_gone_and_what_they_said_arrives_at_the_release() -> None:
    async with echo() as one, balanced(one.url) as balancer:
        async with called(balancer) as streams:
            assert await answer(streams, b"a") == b"a"
            balancer.stall("up")
            streams[1].write(b"late")
            await balancer.until(lambda: balancer.held == 4)
            balancer.strand()
            assert await at_end(streams[0])
        async with called(balancer) as others:
            assert await answer(others, b"b") == b"b"
            assert one.heard == b"ab"
            balancer.stall()
            balancer.resume()
            assert await answer(others, b"x") == b"x"
            assert not one.ended.is_set()
            balancer.release()
            await asyncio.wait_for(one.ended.wait(), 5)
            assert one.heard == b"abxlate"
            assert await answer(others, b"c") == b"c"


async def test_stranded_servers_are_gone_and_their_callers_hear_nothing_until_the_release() -> None:
    async with echo() as one, balanced(one.url) as balancer, called(balancer) as streams:
        assert await answer(streams, b"a") == b"a"
        balancer.strand("servers")
        await asyncio.wait_for(one.ended.wait(), 5)
        streams[1].write(b"b")
        assert await silent(streams[0])
        balancer.release()
        assert await at_end(streams[0])

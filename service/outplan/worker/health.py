"""The three HTTP endpoints: /livez, /readyz, /metrics."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from outplan.errors import PortTaken
from outplan.worker.telemetry import Health, Metrics

_ALARM: Final = "the broker blocks publishers: a memory or disk alarm"
# Less than the second that Kubernetes gives a probe, so that the reason is told.
_PING_SECONDS: Final = 0.8


class Readiness:
    """What keeps a worker from being ready, for /readyz and the gauge alike.

    What the worker has met is known. Where that is nothing it may just have asked for nothing, as
    one does that idles or stands by, so the servers are asked.
    """

    def __init__(
        self,
        health: Health,
        metrics: Metrics,
        blocked: Callable[[], Awaitable[bool]],
        ping: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._blocked = blocked
        self._ping = ping
        self._pinging: asyncio.Task[None] | None = None

    async def troubles(self) -> dict[str, str]:
        """What is wrong, by where it is wrong; within about a second."""
        found = self._health.troubles or await self._asked()
        self._metrics.ready.set(not found)
        return found

    def close(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()

    async def _asked(self) -> dict[str, str]:
        blocked, store = await asyncio.gather(self._blocked(), self._store())
        answers = {"broker": _ALARM if blocked else "", "store": store}
        return {place: reason for place, reason in answers.items() if reason}

    async def _store(self) -> str:
        """What is wrong with the store, or nothing.

        One ping at a time: the driver keeps a thread for each that is not answered.
        """
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.create_task(self._ping())
            self._pinging.add_done_callback(_seen)
        pinging = self._pinging
        await asyncio.wait({pinging}, timeout=_PING_SECONDS)
        if not pinging.done():
            return f"MongoDB does not answer a ping within {_PING_SECONDS} s"
        error = pinging.exception()
        return f"{type(error).__name__}: {error}" if error else ""


def _seen(pinging: "asyncio.Task[None]") -> None:
    """Nobody may be waiting any more when it fails."""
    if not pinging.cancelled():
        pinging.exception()


@asynccontextmanager
async def serve_health(port: int, readiness: Readiness, metrics: Metrics) -> AsyncIterator[None]:
    """Serve until the block ends; ``port`` 0 serves nothing. Raises PortTaken."""
    if port == 0:
        yield
        return
    app = web.Application()
    app.add_routes(_routes(readiness, metrics))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()
    except OSError as error:
        await runner.cleanup()
        raise PortTaken(f"OUTPLAN_HTTP_PORT={port} cannot be listened on: {error}") from error
    try:
        yield
    finally:
        await runner.cleanup()
        readiness.close()


def _routes(readiness: Readiness, metrics: Metrics) -> list[web.RouteDef]:
    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        troubles = await readiness.troubles()
        status = 503 if troubles else 200
        return web.json_response(
            {"status": "waiting" if troubles else "ready", "troubles": troubles}, status=status
        )

    async def metricz(_request: web.Request) -> web.Response:
        await readiness.troubles()
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    return [
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/metrics", metricz),
    ]

"""Serve the three HTTP endpoints: /livez, /readyz, /metrics."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiohttp import web

from outplan.errors import OutplanError, PortTaken
from outplan.worker.activity import Activity
from outplan.worker.telemetry import Health, Metrics

_ALARM: Final = "the broker blocks publishers: a memory or disk alarm"
# Kubernetes gives a probe one second by default; answer with the reason before that.
_PING_SECONDS: Final = 0.8


class Readiness:
    """Decide whether a worker is ready, for /readyz and the gauge alike.

    A worker that has met no error may be idle or on standby, so its servers are asked.
    ``list_refusing`` returns the queues that refuse events, each with the reason, or raises.
    """

    def __init__(
        self,
        *,
        health: Health,
        metrics: Metrics,
        is_blocked: Callable[[], Awaitable[bool]],
        ping: Callable[[], Coroutine[Any, Any, None]],
        activity: Activity,
        list_refusing: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._health = health
        self._metrics = metrics
        self.activity = activity
        self._is_blocked = is_blocked
        self._ping = ping
        self._list_refusing = list_refusing
        self._pinging: asyncio.Task[None] | None = None

    async def failures(self) -> dict[str, str]:
        """Return what is wrong by component, within about a second; empty when ready."""
        found = self._health.failures or await self._ask_servers()
        if reason := found.get("publishing"):
            found["publishing"] = reason + await self._name_refusing()
        self._metrics.ready.set(not found)
        return found

    def close(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()

    async def _ask_servers(self) -> dict[str, str]:
        blocked, store = await asyncio.gather(self._is_blocked(), self._ping_store())
        answers = {"broker": _ALARM if blocked else "", "store": store}
        return {component: reason for component, reason in answers.items() if reason}

    async def _name_refusing(self) -> str:
        """Return which queues refuse events, if RabbitMQ's management API tells."""
        with suppress(OutplanError, TimeoutError):
            async with asyncio.timeout(_PING_SECONDS):
                if names := await self._list_refusing():
                    return f". Refusing: {', '.join(names)}"
        return ""

    async def _ping_store(self) -> str:
        """Return what is wrong with the store, or nothing.

        Have one ping under way at a time: the driver keeps a thread for each unanswered one.
        """
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.create_task(self._ping())
            self._pinging.add_done_callback(_retrieve_error)
        pinging = self._pinging
        await asyncio.wait({pinging}, timeout=_PING_SECONDS)
        if not pinging.done():
            return f"MongoDB does not answer a ping within {_PING_SECONDS} s"
        error = pinging.exception()
        return f"{type(error).__name__}: {error}" if error else ""


def _retrieve_error(pinging: "asyncio.Task[None]") -> None:
    """Keep asyncio quiet about an error that nobody waits for any more."""
    if not pinging.cancelled():
        pinging.exception()


@asynccontextmanager
async def serve_health(port: int, readiness: Readiness, metrics: Metrics) -> AsyncIterator[None]:
    """Serve until the block ends; port 0 turns the endpoints off. Raises PortTaken."""
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
        text = (
            f"OUTPLAN_HTTP_PORT={port} cannot be used: {error}. Choose a free port, or 0 for none"
        )
        raise PortTaken(text) from error
    try:
        yield
    finally:
        await runner.cleanup()
        readiness.close()


def _routes(readiness: Readiness, metrics: Metrics) -> list[web.RouteDef]:
    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        failures = await readiness.failures()
        status = 503 if failures else 200
        body = {
            "status": "waiting" if failures else "ready",
            "role": readiness.activity.role,
            "active_queues": readiness.activity.active,
            "troubles": failures,
        }
        return web.json_response(body, status=status)

    async def metrics_text(_request: web.Request) -> web.Response:
        await readiness.failures()
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    return [
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics_text),
    ]

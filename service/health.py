"""The three HTTP endpoints: /livez, /readyz, /metrics."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from service.errors import PortTaken
from service.telemetry import Health, Metrics


@asynccontextmanager
async def serve_health(
    port: int, health: Health, metrics: Metrics, blocked: Callable[[], Awaitable[bool]]
) -> AsyncIterator[None]:
    """Serve until the block ends; ``port`` 0 serves nothing. Raises PortTaken."""
    if port == 0:
        yield
        return
    app = web.Application()
    app.add_routes(_routes(health, metrics, blocked))
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


def _routes(
    health: Health, metrics: Metrics, blocked: Callable[[], Awaitable[bool]]
) -> list[web.RouteDef]:
    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        troubles = health.troubles
        if not troubles and await blocked():
            troubles["broker"] = "the broker blocks publishers: a memory or disk alarm"
        status = 503 if troubles else 200
        return web.json_response(
            {"status": "waiting" if troubles else "ready", "troubles": troubles}, status=status
        )

    async def metricz(_request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    return [
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/metrics", metricz),
    ]

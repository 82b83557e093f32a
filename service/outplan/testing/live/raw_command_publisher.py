"""Publish commands without checking them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from outplan.client.errors import OutcomeUnknown
from outplan.client.session import ReconnectingSession, Route
from outplan.errors import BrokerUnavailable
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.raw_command import RawCommand

_SECONDS: Final = 30.0


class RawCommandPublisher:
    """Publish bytes under any name; reconnect as often as needed."""

    def __init__(self, link: ReconnectingSession, within: float) -> None:
        self._link = link
        self._within = within

    async def publish(self, command: RawCommand) -> None:
        """Publish until the broker confirms. Raises OutcomeUnknown."""

        async def attempt() -> None:
            session = await self._link.session()
            publishing = session.publish(command.name, command.body, command.properties)
            both: set[asyncio.Future[Any]] = {publishing, session.lost}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise session.lost.result()
            publishing.result()

        try:
            async with asyncio.timeout(self._within):
                retry = retrying(BrokerUnavailable, on_error=self._on_error, wait=SPREAD_BACKOFF)
                await retry(attempt)
        except TimeoutError:
            raise OutcomeUnknown(command.message_id, self._link.trouble) from None

    def _on_error(self, error: BaseException) -> None:
        self._link.trouble = str(error)


@asynccontextmanager
async def open_publisher(
    amqp_url: str, prefix: str, within: float
) -> AsyncIterator[RawCommandPublisher]:
    """Connect until the block ends. Raises Refused or Unreachable.

    ``within`` limits each publication, in seconds.
    """
    link = ReconnectingSession(Route(amqp_url, prefix, f"{prefix}.publisher"), lambda *_: None)
    linking = asyncio.create_task(link.run())
    try:
        await link.wait_until_open(_SECONDS)
        yield RawCommandPublisher(link, within)
    finally:
        linking.cancel()
        with suppress(asyncio.CancelledError):
            await linking

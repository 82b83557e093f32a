"""Publishes anything, right or wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from outplan.client.connection import retrying
from outplan.client.errors import OutcomeUnknown
from outplan.client.session import ReconnectingSession, Route
from outplan.testing.outgoing import Outgoing

_SECONDS: Final = 30.0


class Publisher:
    """Sends bytes under any name, over one connection after the other."""

    def __init__(self, link: ReconnectingSession, within: float) -> None:
        self._link = link
        self._within = within

    async def publish(self, sent: Outgoing) -> None:
        """Publish until the broker confirms that it has it. Raises OutcomeUnknown."""

        async def attempt() -> None:
            session = await self._link.session()
            publishing = session.publish(sent.name, sent.body, sent.properties)
            both: set[asyncio.Future[Any]] = {publishing, session.lost}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise session.lost.result()
            publishing.result()

        try:
            async with asyncio.timeout(self._within):
                await retrying(self._on_error)(attempt)
        except TimeoutError:
            raise OutcomeUnknown(sent.message_id, self._link.trouble) from None

    def _on_error(self, error: BaseException) -> None:
        self._link.trouble = str(error)


@asynccontextmanager
async def publisher(amqp_url: str, prefix: str, within: float) -> AsyncIterator[Publisher]:
    """A publisher of commands, connected until the block ends. Raises Refused or Unreachable.

    ``within`` is how many seconds a publication may take.
    """
    link = ReconnectingSession(Route(amqp_url, prefix, f"{prefix}.publisher"), lambda *_: None)
    linking = asyncio.create_task(link.run())
    try:
        await link.opened(_SECONDS)
        yield Publisher(link, within)
    finally:
        linking.cancel()
        with suppress(asyncio.CancelledError):
            await linking

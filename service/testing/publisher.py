"""Publishes anything, right or wrong."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from pamqp.commands import Basic

from service.client.errors import OutcomeUnknown
from service.client.session import Link, Route
from service.client.wire import patient

_SECONDS: Final = 30.0
_PERSISTENT: Final = 2


class Publisher:
    """Sends bytes under any name, over one connection after the other."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def publish(
        self, name: str, body: bytes, message_id: str, headers: Mapping[str, Any]
    ) -> None:
        """Publish until the broker confirms that it has it. Raises OutcomeUnknown."""
        properties = Basic.Properties(
            delivery_mode=_PERSISTENT,
            message_id=message_id,
            message_type=name,
            headers=dict(headers),
        )

        async def attempt() -> None:
            session = await self._link.session()
            publishing = session.publish(name, body, properties)
            both: set[asyncio.Future[Any]] = {publishing, session.lost}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise session.lost.result()
            publishing.result()

        try:
            async with asyncio.timeout(_SECONDS):
                await patient(self._notice)(attempt)
        except TimeoutError:
            raise OutcomeUnknown(message_id, self._link.trouble) from None

    def _notice(self, error: BaseException) -> None:
        self._link.trouble = str(error)


@asynccontextmanager
async def publisher(amqp_url: str, prefix: str) -> AsyncIterator[Publisher]:
    """A publisher of commands, connected until the block ends. Raises Refused or Unreachable."""
    link = Link(Route(amqp_url, prefix, f"{prefix}.publisher"), lambda *_: None)
    linking = asyncio.create_task(link.run())
    try:
        await link.opened(_SECONDS)
        yield Publisher(link)
    finally:
        linking.cancel()
        with suppress(asyncio.CancelledError):
            await linking

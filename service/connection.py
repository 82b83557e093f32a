"""Connections to the broker, tapped; and the driver's exceptions, translated."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import aio_pika
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from yarl import URL

from service.errors import BrokerRefused, BrokerUnavailable, OutplanError
from service.tap import Incoming, Tap

CONNECT_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 3
_HEARTBEAT_SECONDS: Final = 10
_NOT_ALLOWED: Final = 530
_UNKNOWN_TYPE: Final = "unknown exchange type"


class _TappedConnection(aio_pika.Connection):
    def __init__(self, url: URL, incoming: Incoming, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        self.kwargs = {**self.kwargs, "transport_factory": Tap(incoming)}


@asynccontextmanager
async def tapped_connection(
    url: str, purpose: str, incoming: Incoming
) -> AsyncIterator[aio_pika.Connection]:
    """Connect; close with the block. Raises BrokerUnavailable (try again) or BrokerRefused."""
    target = URL(url)
    if "heartbeat" not in target.query:
        target = target.update_query(heartbeat=_HEARTBEAT_SECONDS)
    connection = _TappedConnection(
        target, incoming, client_properties={"connection_name": f"outplan {purpose}"}
    )
    try:
        with translated():
            await connection.connect(timeout=CONNECT_SECONDS)
    except BrokerUnavailable as error:
        if incoming.close_code == _NOT_ALLOWED:
            raise BrokerRefused(
                f"RabbitMQ refuses the virtual host {target.path!r} in OUTPLAN_AMQP_URL"
            ) from error
        raise
    try:
        yield connection
    finally:
        # It is being closed because it is broken, as likely as not.
        with suppress(OutplanError), translated():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()


@contextmanager
def declaring(what: str) -> Iterator[None]:
    """Say what was refused, and what to do, where a declaration is."""
    try:
        yield
    # The first is what RabbitMQ 3 says of an exchange type that it does not know, 4 the other.
    except (ConnectionCommandInvalid, ChannelPreconditionFailed) as error:
        if _UNKNOWN_TYPE in str(error):
            raise BrokerRefused(
                f"{what}: {error}. Enable the plugin rabbitmq_consistent_hash_exchange, or set "
                "OUTPLAN_PARTITIONS=1"
            ) from error
        raise BrokerRefused(
            f"{what} exists with other arguments: {error}. Delete it once it is empty, or set "
            "OUTPLAN_PREFIX"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """No driver exception leaves this module."""
    try:
        yield
    except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
        raise translation(error) from error
    except asyncio.CancelledError as error:
        # The library cancels its own calls when a connection goes.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerUnavailable("the connection went away") from error


def translation(error: Exception) -> OutplanError:
    """The service's exception for one of the driver's."""
    if isinstance(error, ProbableAuthenticationError | AuthenticationError):
        return BrokerRefused(f"RabbitMQ refuses the credentials in OUTPLAN_AMQP_URL: {error}")
    if isinstance(error, ChannelAccessRefused):
        return BrokerRefused(f"RabbitMQ refuses the permission: {error}")
    if isinstance(error, IncompatibleProtocolError):
        return BrokerRefused(f"what answers at OUTPLAN_AMQP_URL is no AMQP 0-9-1: {error}")
    return BrokerUnavailable(f"{type(error).__name__}: {str(error) or 'no answer in time'}")

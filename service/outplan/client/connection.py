"""Open connections for the client and translate errors into the client's own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

from aiormq.exceptions import ChannelPreconditionFailed

from outplan.client.errors import ClientError, Refused
from outplan.errors import BrokerRefused, BrokerUnavailable
from outplan.rabbitmq import connection as rabbitmq_connection
from outplan.urls import check_amqp_url

# A call has 30 seconds by default. At three heartbeats the broker gives up a connection that was
# cut silently, and takes the next one.
HEARTBEAT_SECONDS: Final = 4


@asynccontextmanager
async def open_connection(url: str, name: str) -> AsyncIterator[rabbitmq_connection.Connection]:
    """Connect; close when the block ends. Raises BrokerUnavailable (try again) or Refused."""
    try:
        url = check_amqp_url(url)
    except ValueError as error:
        raise Refused(f"the AMQP URL {error}") from None
    async with AsyncExitStack() as stack:
        with translate_errors():
            opening = rabbitmq_connection.open_connection(url, name, heartbeat=HEARTBEAT_SECONDS)
            connection = await stack.enter_async_context(opening)
        yield connection


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Refused or BrokerUnavailable for what the driver raises."""
    try:
        with rabbitmq_connection.translate_errors():
            yield
    except BrokerRefused as error:
        raise Refused(str(error)) from error
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelPreconditionFailed):
            raise Refused(str(error)) from error
        raise
    except ClientError:
        raise
    # When a connection ends, its reader's exception also comes out of the calls that wait.
    except Exception as error:
        raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error

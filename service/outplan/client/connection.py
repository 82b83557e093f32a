"""Open connections for the client and translate errors into the client's own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

from aiormq.exceptions import ChannelPreconditionFailed, ConnectionNotAllowed
from yarl import URL

from outplan.client.errors import ClientError, Refused
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.rabbitmq import connection as rabbitmq_connection


@asynccontextmanager
async def open_connection(url: str, name: str) -> AsyncIterator[rabbitmq_connection.Connection]:
    """Connect; close when the block ends. Raises BrokerUnavailable (try again) or Refused."""
    _require_address(url)
    async with AsyncExitStack() as stack:
        with translate_errors():
            opening = rabbitmq_connection.open_connection(url, name)
            connection = await stack.enter_async_context(opening)
        yield connection


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Refused or BrokerUnavailable for what the driver raises."""
    try:
        with rabbitmq_connection.translate_errors():
            yield
    except (BrokerRefused, BrokerUnavailable) as error:
        cause = error.__cause__
        if isinstance(error, BrokerRefused) and isinstance(cause, OutplanError):
            raise Refused(str(error)) from error
        refusals = ChannelPreconditionFailed | ConnectionNotAllowed
        if isinstance(error, BrokerRefused) or isinstance(cause, refusals):
            raise Refused(f"RabbitMQ refuses: {cause}") from error
        raise
    except ClientError:
        raise
    # When a connection ends, its reader's exception also comes out of the calls that wait.
    except Exception as error:
        raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error


def _require_address(url: str) -> None:
    """Raise Refused for what is no AMQP URL, without quoting it: it may hold a password."""
    target = URL()
    with suppress(ValueError):
        target = URL(url)
    if target.scheme not in ("amqp", "amqps") or not target.host:
        raise Refused("an address should be amqp://user:password@host:port/vhost, escaped")

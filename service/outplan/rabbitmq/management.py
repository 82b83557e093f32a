"""Ask RabbitMQ's management API what AMQP does not tell: unacked messages, and bound queues.

The API's numbers are some seconds old.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from aiohttp import ClientError, ClientSession, ClientTimeout
from yarl import URL

from outplan.errors import OutplanError

_SECONDS: Final = 3
_AT_A_TIME: Final = 8
_BROKEN: Final = ("down", "minority", "stopped", "crashed", "terminated")
_LIMITS: Final = (
    ("max-length", "messages_ready", "messages"),
    ("max-length-bytes", "message_bytes_ready", "bytes"),
)

Json = dict[str, Any]


class ManagementUnavailable(OutplanError):
    """Raised if the management API does not answer; the text says what to do."""


@dataclass(frozen=True, slots=True)
class ManagedQueue:
    """A queue's messages and consumers; ``refusal`` says why it refuses messages, if it does."""

    name: str
    ready: int
    unacked: int
    consumers: int
    refusal: str = ""


class Management:
    """The API at ``url`` for one virtual host, from ``open_management``.

    Its methods raise ManagementUnavailable.
    """

    def __init__(self, url: str, virtual_host: str, session: ClientSession) -> None:
        self._url = URL(url)
        self._virtual_host = quote(virtual_host, safe="")
        self._session = session
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def read_queue(self, name: str) -> ManagedQueue | None:
        """Return a queue; None if there is none."""
        found: Json | None = await self._get("queues", name)
        return None if found is None else _parse_queue(found)

    async def list_bound_queues(self, exchange: str) -> list[ManagedQueue]:
        """List the queues that get an exchange's messages, also through other exchanges."""
        names: set[str] = set()
        exchanges, seen = [exchange], {exchange}
        while exchanges:
            for binding in await self._get("exchanges", exchanges.pop(), "/bindings/source") or ():
                destination = binding["destination"]
                if binding["destination_type"] == "queue":
                    names.add(destination)
                elif destination not in seen:
                    seen.add(destination)
                    exchanges.append(destination)
        queues = await asyncio.gather(*(self.read_queue(name) for name in sorted(names)))
        return [queue for queue in queues if queue is not None]

    async def _get(self, kind: str, name: str, more: str = "") -> Any:
        """Return what the API answers; None if there is no such object."""
        path = f"/api/{kind}/{self._virtual_host}/{quote(name, safe='')}{more}"
        # aiohttp logs in with the user and the password in the URL.
        url = self._url.with_path(f"{self._url.path.rstrip('/')}{path}", encoded=True)
        try:
            async with self._turns, self._session.get(url) as response:
                if response.status == 404:
                    return None
                if response.status in (401, 403):
                    raise ManagementUnavailable(
                        f"{url.host}:{url.port} refuses user {self._url.user}: give it the tag "
                        "management"
                    )
                response.raise_for_status()
                return await response.json()
        except TimeoutError:
            raise ManagementUnavailable(
                f"{url.host}:{url.port} does not answer within {_SECONDS} s"
            ) from None
        except (ClientError, ValueError) as error:
            raise ManagementUnavailable(
                f"{url.host}:{url.port} does not answer as the management API does: "
                f"{type(error).__name__}"
            ) from error


@asynccontextmanager
async def open_management(url: str, virtual_host: str) -> AsyncIterator[Management]:
    """Open the API for the block; nothing is asked yet."""
    async with ClientSession(timeout=ClientTimeout(total=_SECONDS)) as session:
        yield Management(url, virtual_host, session)


def default_management_url(amqp_url: str) -> str:
    """Return where RabbitMQ has the API by default, with the same user."""
    target = URL(amqp_url)
    is_secure = target.scheme == "amqps"
    return str(
        URL.build(
            scheme="https" if is_secure else "http",
            user=target.user or "guest",
            password=target.password or "guest",
            host=target.host or "localhost",
            port=15671 if is_secure else 15672,
        )
    )


def _parse_queue(found: Json) -> ManagedQueue:
    return ManagedQueue(
        found["name"],
        found.get("messages_ready") or 0,
        found.get("messages_unacknowledged") or 0,
        found.get("consumers") or 0,
        _find_refusal(found),
    )


def _find_refusal(found: Json) -> str:
    state = found.get("state")
    if state in _BROKEN:
        return f"its state is {state}"
    arguments: Mapping[str, Any] = found.get("arguments") or {}
    policy: Mapping[str, Any] = found.get("effective_policy_definition") or {}
    overflow = str(arguments.get("x-overflow", policy.get("overflow", "")))
    if not overflow.startswith("reject-publish"):
        return ""
    for name, count, unit in _LIMITS:
        limits = [limits[key] for limits, key in ((arguments, f"x-{name}"), (policy, name))
                  if key in limits]  # fmt: skip
        used = found.get(count) or 0
        if limits and used >= min(limits):
            return f"it is full: {used:,} of {min(limits):,} {unit}"
    return ""

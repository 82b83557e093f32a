"""The client that publishers use: commands out, verdicts back."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack
from uuid import UUID, uuid4

from pamqp.commands import Basic

from outplan.client.bulk import CommandResult, Progress, flow
from outplan.client.connection import TransientError, retrying
from outplan.client.errors import OutcomeUnknown, Refused, rejection
from outplan.client.models import Outplan, Reply
from outplan.client.pending import PendingCall, PendingReplies
from outplan.client.requests import CreateFields, Preconditions, Request, UpdateFields
from outplan.client.session import CommandPublisher, ReconnectingSession, Route, SessionClosed
from outplan.client.tracing import trace_headers

T = TypeVar("T")

_PERSISTENT: Final = 2
# How long an answer may take, in seconds, before the command is sent once more.
RESEND_SECONDS: Final = 10.0
_NO_CONFIRM: Final = "the broker does not confirm it; in an alarm (memory, disk) it takes nothing"
_NO_ANSWER: Final = "the broker has it, and no worker has answered"


@dataclass(frozen=True, slots=True)
class Result:
    """A command's granted outcome.

    ``version`` and ``outplan`` are as of the command; ``duplicate`` says that an earlier sending
    of it had taken effect already, the client's own included.
    """

    message_id: str
    status: Literal["accepted", "unchanged"]
    duplicate: bool
    version: int
    outplan: Outplan


class OutplanClient:
    """Sends commands and tells what became of them; an async context manager.

    ``timeout`` is how many seconds a call may take, connection losses included; ``validate=False``
    leaves bodies for the worker to judge; ``resend_after`` is how many seconds an answer may take
    before the command is sent once more. Calls may run at the same time; those that do when it is
    closed end as OutcomeUnknown. Entering it raises Refused or Unreachable; a call outside of its
    block raises RuntimeError, and so does entering it while it is open.
    """

    def __init__(
        self,
        amqp_url: str,
        *,
        prefix: str = "outplan",
        timeout: float = 30,
        validate: bool = True,
        resend_after: float = RESEND_SECONDS,
    ) -> None:
        self._name = str(uuid4())
        self._route = Route(amqp_url, prefix, f"{prefix}.replies.{self._name}")
        self._timeout = timeout
        self._validate = validate
        self._resend_after = resend_after
        self._pending_replies = PendingReplies(self._name)
        self._linking: tuple[ReconnectingSession, asyncio.Task[None]] | None = None

    async def __aenter__(self) -> Self:
        if self._linking is not None:
            raise RuntimeError("the client is open already")
        link = self._new_session()
        self._linking = link, asyncio.create_task(link.run())
        try:
            await link.opened(self._timeout)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def create(
        self,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[CreateFields],
    ) -> Result:
        """Create an outplan. Raises as ``ask`` does."""
        return await self.ask(Request.create(message_id=message_id, **fields))

    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        """Change an outplan. Raises as ``ask`` does."""
        return await self.ask(Request.update(outplan_id, message_id=message_id, **fields))

    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        """Delete an outplan, softly. Raises as ``ask`` does."""
        return await self.ask(Request.delete(outplan_id, message_id=message_id, **fields))

    async def ask(self, request: Request) -> Result:
        """Send a command and await its outcome, sending it again where that is in doubt.

        Raises the CommandRejected that fits its problem, or OutcomeUnknown.
        """
        link, sending = self._open_link(), self._sending(request)
        call = PendingCall(self._pending_replies)
        try:
            reply = await self._until(link, sending, partial(self._attempt, link, sending, call))
        finally:
            self._pending_replies.discard(call)
        return _result(request, reply)

    async def send(self, request: Request) -> str:
        """Send a command until the broker confirms that it has it: its message_id.

        The outcome is not awaited. Raises OutcomeUnknown.
        """
        link, sending = self._open_link(), self._sending(request)

        async def attempt() -> None:
            await _confirmed(await link.session(), sending, None)

        await self._until(link, sending, attempt)
        return request.message_id

    def send_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        in_flight: int = 500,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncGenerator[CommandResult[Result]]:
        """Ask for each of many, ``in_flight`` at a time; their verdicts, in the order given.

        What is given in turn for one outplan is sent in turn. Memory does not grow with their
        number. ``progress`` is called with each verdict.
        """
        return flow(requests, self.ask, in_flight, progress)

    async def _until(
        self, link: ReconnectingSession, sending: "_Sending", attempt: Callable[[], Awaitable[T]]
    ) -> T:
        """Attempt it until it succeeds; OutcomeUnknown when time is up or the client is closed."""
        id_ = sending.request.message_id
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await attempt()
                # That RabbitMQ refuses this publish says nothing of one that went before.
                except (TransientError, Refused) as error:
                    sending.on_error(error)
                return await retrying(sending.on_error, Refused)(attempt)
        except TimeoutError:
            trouble = sending.trouble if link.connected else link.trouble
            raise OutcomeUnknown(id_, trouble) from None
        except SessionClosed as error:
            raise OutcomeUnknown(id_, str(error)) from None

    async def _attempt(
        self, link: ReconnectingSession, sending: "_Sending", call: PendingCall
    ) -> Reply:
        session = await link.session()
        if not call.verdict.done():
            await _confirmed(session, sending, call)
        sending.trouble = _NO_ANSWER
        either: set[asyncio.Future[Any]] = {call.verdict, session.lost}
        await asyncio.wait(either, timeout=self._resend_after, return_when=asyncio.FIRST_COMPLETED)
        if call.verdict.done():
            return call.verdict.result()
        raise session.lost.result() if session.lost.done() else TransientError(_NO_ANSWER)

    def _open_link(self) -> ReconnectingSession:
        if self._linking is None:
            raise RuntimeError("the client is not open: call it inside of `async with`")
        return self._linking[0]

    def _new_session(self) -> ReconnectingSession:
        return ReconnectingSession(self._route, self._pending_replies.on_reply)

    def _sending(self, request: Request) -> "_Sending":
        headers = trace_headers()
        if (outplan_id := request.outplan_id) is not None:
            headers["outplan_id"] = outplan_id
        body = request.encoded(validate=self._validate)
        return _Sending(request, body, headers, self._route.reply_queue)

    async def _close(self) -> None:
        if self._linking is None:
            return
        (_, running), self._linking = self._linking, None
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@dataclass(slots=True)
class _Sending:
    """What each attempt at a command sends, always the same; ``trouble`` is what it waits for."""

    request: Request
    body: bytes
    headers: dict[str, str]
    reply_queue: str
    trouble: str = _NO_CONFIRM

    def on_error(self, error: BaseException) -> None:
        self.trouble = str(error)

    def properties(self, attempt: str | None) -> Basic.Properties:
        """Its AMQP properties; an ``attempt`` is one whose answer is awaited."""
        return Basic.Properties(
            content_type="application/json",
            delivery_mode=_PERSISTENT,
            message_id=self.request.message_id,
            message_type=self.request.name,
            timestamp=datetime.now(UTC),
            headers=dict(self.headers),
            correlation_id=attempt,
            reply_to=self.reply_queue if attempt else None,
        )


async def _confirmed(
    session: CommandPublisher, sending: _Sending, call: PendingCall | None
) -> None:
    """Publish; returns with the broker's confirm, or with the verdict, should it be faster."""
    properties = sending.properties(call.attempt() if call else None)
    publishing = session.publish(sending.request.name, sending.body, properties)
    awaited: set[asyncio.Future[Any]] = {publishing, session.lost}
    if call is not None:
        awaited.add(call.verdict)
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    if call is not None and call.verdict.done():
        return
    if publishing.done():
        publishing.result()
    else:
        raise session.lost.result()


def _result(request: Request, reply: Reply) -> Result:
    if reply.problem is not None:
        raise rejection(reply.problem)
    assert reply.status != "rejected"
    assert reply.version is not None
    assert reply.outplan is not None
    return Result(request.message_id, reply.status, reply.duplicate, reply.version, reply.outplan)

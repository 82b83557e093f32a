"""Send commands and receive their outcomes."""

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

from outplan.client.bulk import CommandResult, Progress, ask_many
from outplan.client.errors import OutcomeUnknown, Refused, rejection
from outplan.client.loop_guard import LoopGuard
from outplan.client.models import Outplan, Reply
from outplan.client.pending import PendingCall, PendingReplies
from outplan.client.requests import CreateFields, Preconditions, Request, UpdateFields
from outplan.client.session import CommandPublisher, ReconnectingSession, Route, SessionClosed
from outplan.client.tracing import trace_headers
from outplan.contract.fields import UUID_TARGET
from outplan.errors import BrokerUnavailable
from outplan.retry import SPREAD_BACKOFF, retrying

T = TypeVar("T")

_PERSISTENT: Final = 2
# Resend a command after this many seconds without a reply.
RESEND_SECONDS: Final = 10.0
_NO_CONFIRM: Final = "the broker has not confirmed the command"
_NO_REPLY: Final = (
    "the broker has confirmed the command, and no worker has replied; check that a worker runs"
)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a command that was not rejected.

    ``version`` and ``outplan`` are as of the command. ``duplicate`` says that the command had
    already taken effect when it was sent before, possibly by this client.
    """

    message_id: str
    status: Literal["accepted", "unchanged"]
    duplicate: bool
    version: int
    outplan: Outplan


class OutplanClient:
    """Send commands and return their outcomes; an async context manager.

    ``timeout`` is the seconds that a call may take, lost connections included. The client
    resends a command after ``resend_after`` seconds without a reply. ``validate=False`` leaves
    validation to the worker.

    Calls may run at the same time, all in the event loop that opened the client: another one, and a
    process forked from this one, get RuntimeError. Closing the client ends its calls with
    OutcomeUnknown. Entering the block raises Refused, Unreachable or NoExchange. Calling outside of
    the block, or entering it twice, raises RuntimeError.
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
        self._running: _Running | None = None

    async def __aenter__(self) -> Self:
        if self._running is not None:
            self._running.guard.check()
            raise RuntimeError("the client is open already")
        sessions = self._new_session()
        task = asyncio.create_task(sessions.run())
        self._running = _Running(sessions, task, LoopGuard("client"))
        try:
            await sessions.wait_until_open(self._timeout)
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
        """Send a command and return its outcome, resending it while the outcome is in doubt.

        Raises the CommandRejected for its problem, or OutcomeUnknown.
        """
        sessions, command = self._require_open(), self._encode(request)
        call = PendingCall(self._pending_replies)
        try:
            attempt = partial(self._attempt, sessions, command, call)
            reply = await self._retry(sessions, command, attempt)
        finally:
            self._pending_replies.discard(call)
        return _result(request, reply)

    async def send(self, request: Request) -> str:
        """Send a command until the broker confirms it; return its message_id.

        Does not wait for the outcome. Raises OutcomeUnknown.
        """
        sessions, command = self._require_open(), self._encode(request)

        async def attempt() -> None:
            await _publish(await sessions.session(), command, None)
            sessions.note_progress()

        await self._retry(sessions, command, attempt)
        return request.message_id

    def send_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        in_flight: int = 500,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncGenerator[CommandResult[Result]]:
        """Send many commands, ``in_flight`` at a time; yield their results in the order given.

        Commands for one outplan are sent one after the other. Memory does not grow with the number
        of commands. ``progress`` is called after each result.
        """
        return ask_many(requests, self.ask, in_flight, progress)

    async def _retry(
        self,
        sessions: ReconnectingSession,
        command: "_EncodedCommand",
        attempt: Callable[[], Awaitable[T]],
    ) -> T:
        """Attempt until it succeeds; OutcomeUnknown at the deadline or when the client closes."""
        id_ = command.request.message_id
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await attempt()
                # A refused attempt does not say what became of the one before: retry that too.
                except (BrokerUnavailable, Refused) as error:
                    command.on_error(error)
                return await retrying(
                    BrokerUnavailable, Refused, on_error=command.on_error, wait=SPREAD_BACKOFF
                )(attempt)
        except TimeoutError:
            raise OutcomeUnknown(id_, await sessions.explain(command.trouble)) from None
        except SessionClosed as error:
            raise OutcomeUnknown(id_, str(error)) from None

    async def _attempt(
        self, sessions: ReconnectingSession, command: "_EncodedCommand", call: PendingCall
    ) -> Reply:
        session = await sessions.session()
        if not call.reply.done():
            await _publish(session, command, call)
            sessions.note_progress()
        command.trouble = _NO_REPLY
        either: set[asyncio.Future[Any]] = {call.reply, session.lost}
        await asyncio.wait(either, timeout=self._resend_after, return_when=asyncio.FIRST_COMPLETED)
        if call.reply.done():
            return call.reply.result()
        raise session.lost.result() if session.lost.done() else BrokerUnavailable(_NO_REPLY)

    def _require_open(self) -> ReconnectingSession:
        if self._running is None:
            raise RuntimeError("the client is not open: call it inside of `async with`")
        self._running.guard.check()
        return self._running.sessions

    def _new_session(self) -> ReconnectingSession:
        return ReconnectingSession(self._route, self._pending_replies.on_reply)

    def _encode(self, request: Request) -> "_EncodedCommand":
        headers = trace_headers()
        # The broker would end the connection for a header that AMQP cannot carry.
        if (outplan_id := request.outplan_id) is not None and UUID_TARGET.match(outplan_id):
            headers["outplan_id"] = outplan_id
        body = request.encode(validate=self._validate)
        return _EncodedCommand(request, body, headers, self._route.reply_queue)

    async def _close(self) -> None:
        running = self._running
        if running is None:
            return
        if not running.guard.is_forked:
            running.guard.check()
            self._running = None
            running.task.cancel()
            with suppress(asyncio.CancelledError):
                await running.task
        self._running = None


@dataclass(frozen=True, slots=True)
class _Running:
    """What an open client has: ``task`` keeps the sessions."""

    sessions: ReconnectingSession
    task: asyncio.Task[None]
    guard: LoopGuard


@dataclass(slots=True)
class _EncodedCommand:
    """A command as every attempt sends it; ``trouble`` is what it waits for now."""

    request: Request
    body: bytes
    headers: dict[str, str]
    reply_queue: str
    trouble: str = _NO_CONFIRM

    def on_error(self, error: BaseException) -> None:
        self.trouble = str(error)

    def properties(self, attempt: str | None) -> Basic.Properties:
        """Make the AMQP properties; ``attempt`` is the correlation id if a reply is wanted."""
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


async def _publish(
    session: CommandPublisher, command: _EncodedCommand, call: PendingCall | None
) -> None:
    """Publish; return at the broker's confirm, or at the reply if that is faster."""
    properties = command.properties(call.start_attempt() if call else None)
    publishing = session.publish(command.request.routing_key, command.body, properties)
    awaited: set[asyncio.Future[Any]] = {publishing, session.lost}
    if call is not None:
        awaited.add(call.reply)
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    if call is not None and call.reply.done():
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

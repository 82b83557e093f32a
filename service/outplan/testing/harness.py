"""The calls that a test makes to the service, on real servers and in memory alike."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack
from uuid import UUID

from outplan.client import Event, Outplan, Request, Result
from outplan.client.portal import Portal
from outplan.client.requests import CreateFields, Preconditions, UpdateFields
from outplan.contract.messages import EventType, Problem
from outplan.domain.decider import State
from outplan.testing.event_buffer import EventBuffer
from outplan.testing.raw_command import RawCommand
from outplan.testing.worker_exit import WorkerExit, raise_if_exited, run_unless_exited

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A command from the queue of rejected commands, as it was sent, with its problem."""

    message_id: str | None
    name: str
    body: bytes
    problem: Problem


@dataclass(frozen=True, slots=True)
class Document:
    """A stored outplan."""

    outplan: Outplan
    version: int


class BackendWorker(Protocol):
    """The worker of a backend. ``exited`` is done when it has exited by itself."""

    @property
    def exited(self) -> WorkerExit: ...
    async def start(self) -> None: ...
    async def kill(self) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


class BackendBroker(Protocol):
    """The broker of a backend."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Backend(Protocol):
    """The servers and the worker behind an `AsyncService`, real or in memory.

    ``ask`` sends a valid command as the client does, ``publish`` any command. ``catch_up`` waits
    until the events of all accepted commands are in ``events``.
    """

    @property
    def worker(self) -> BackendWorker: ...
    @property
    def broker(self) -> BackendBroker: ...
    @property
    def events(self) -> EventBuffer: ...
    async def ask(self, request: Request) -> Result: ...
    async def publish(self, command: RawCommand) -> None: ...
    async def catch_up(self) -> None: ...
    async def read_states(self) -> Sequence[State]: ...
    async def read_rejected(self) -> Sequence[Rejected]: ...


def _in_backend_loop(
    method: Callable[Concatenate["AsyncService", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["AsyncService", P], Coroutine[Any, Any, T]]:
    """Run a method of `AsyncService` in the event loop that its backend lives in."""

    @wraps(method)
    async def run(self: "AsyncService", /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = method(self, *args, **kwargs)
        return await (call if self._portal is None else self._portal.run_async(call))

    return run


class AsyncService:
    """A worker of a test's own.

    Without a ``portal`` the backend lives in the caller's event loop, with one in the portal's.
    Calls may run at the same time. When the worker exits by itself, they raise WorkerFailed.
    """

    def __init__(self, backend: Backend, portal: Portal | None = None) -> None:
        self.backend = backend
        self._portal = portal

    @_in_backend_loop
    async def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish any command, valid or not, without waiting for its outcome.

        A mapping goes with its slot in the routing key, as the client sends it, bytes with the
        bare name. Returns the message_id, a new one if none is given. Raises OutcomeUnknown if the
        broker does not confirm it, InvalidCommand for a message_id that AMQP cannot carry, and
        ValueError or TypeError for anything else that it cannot.
        """
        command = RawCommand.of(name, body, message_id, headers)
        raise_if_exited(self.backend.worker.exited)
        await self.backend.publish(command)
        return command.message_id

    @_in_backend_loop
    async def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result:
        """Create an outplan. Raises CommandRejected or OutcomeUnknown, as the client does."""
        return await self._ask(Request.create(message_id=message_id, **fields))

    @_in_backend_loop
    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        """Update an outplan. Raises CommandRejected or OutcomeUnknown, as the client does."""
        return await self._ask(Request.update(outplan_id, message_id=message_id, **fields))

    @_in_backend_loop
    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        """Delete an outplan. Raises CommandRejected or OutcomeUnknown, as the client does."""
        return await self._ask(Request.delete(outplan_id, message_id=message_id, **fields))

    @_in_backend_loop
    async def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event:
        """Return the next event that matches; each event once.

        Raises TimeoutError if none arrives ``within`` so many seconds.
        """
        return await self._unless_exited(self.backend.events.next(kind, outplan_id, within))

    @_in_backend_loop
    async def events(self) -> Sequence[Event]:
        """Return all events so far in the order of their arrival, repeats included."""
        await self._unless_exited(self.backend.catch_up())
        return tuple(self.backend.events.all)

    @_in_backend_loop
    async def documents(self) -> Sequence[Document]:
        """Return all stored outplans in the order of their creation."""
        raise_if_exited(self.backend.worker.exited)
        states = await self.backend.read_states()
        return tuple(
            Document(Outplan.model_validate(state.outplan.model_dump()), state.version)
            for state in sorted(states, key=lambda it: (it.outplan.tm_create, it.outplan.id))
        )

    @_in_backend_loop
    async def rejected(self) -> Sequence[Rejected]:
        """Return all rejected commands and leave them in their queue.

        Raises TimeoutError if the broker does not answer.
        """
        return tuple(await self._unless_exited(self.backend.read_rejected()))

    @_in_backend_loop
    async def start_worker(self) -> None:
        """Start the worker, or resume it if it is paused, and wait until it is ready."""
        await self.backend.worker.start()

    @_in_backend_loop
    async def kill_worker(self) -> None:
        """Crash the worker by SIGKILL."""
        await self.backend.worker.kill()

    @_in_backend_loop
    async def pause_worker(self) -> None:
        """Hang the worker by SIGSTOP. Raises WorkerFailed if it is not running."""
        await self.backend.worker.pause()

    @_in_backend_loop
    async def resume_worker(self) -> None:
        """End the worker's pause. Raises WorkerFailed if it is not running."""
        await self.backend.worker.resume()

    @_in_backend_loop
    async def stop_broker(self) -> None:
        """Shut RabbitMQ down. Raises NotControllable if it is not the tests' own."""
        # Events of accepted commands are received first, so that `events` returns them.
        await self.backend.catch_up()
        await self.backend.broker.stop()

    @_in_backend_loop
    async def start_broker(self) -> None:
        """Start RabbitMQ with all that it had. Raises NotControllable as `stop_broker` does."""
        await self.backend.broker.start()

    async def _ask(self, request: Request) -> Result:
        request.encode()  # Raises what the client raises before it sends anything.
        return await self._unless_exited(self.backend.ask(request))

    async def _unless_exited(self, call: Coroutine[Any, Any, T]) -> T:
        return await run_unless_exited(self.backend.worker.exited, call)


def _blocking(
    method: Callable[Concatenate[AsyncService, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncService", P], T]:
    """Turn a method of `AsyncService` into one that blocks until it is done."""

    @wraps(method)
    def run(self: "SyncService", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.run(method(self._service, *args, **kwargs))

    return run


class SyncService:
    """`AsyncService` for tests without an event loop: the same calls, blocking."""

    def __init__(self, backend: Backend, portal: Portal) -> None:
        self._service = AsyncService(backend)
        self._portal = portal

    publish = _blocking(AsyncService.publish)
    create = _blocking(AsyncService.create)
    update = _blocking(AsyncService.update)
    delete = _blocking(AsyncService.delete)
    next_event = _blocking(AsyncService.next_event)
    events = _blocking(AsyncService.events)
    documents = _blocking(AsyncService.documents)
    rejected = _blocking(AsyncService.rejected)
    start_worker = _blocking(AsyncService.start_worker)
    kill_worker = _blocking(AsyncService.kill_worker)
    pause_worker = _blocking(AsyncService.pause_worker)
    resume_worker = _blocking(AsyncService.resume_worker)
    stop_broker = _blocking(AsyncService.stop_broker)
    start_broker = _blocking(AsyncService.start_broker)

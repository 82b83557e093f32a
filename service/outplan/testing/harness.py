"""What a test may do with the service, whether it runs on real servers or in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Unpack
from uuid import UUID

from outplan.client import Event, Outplan, Result
from outplan.client.requests import CreateFields, Preconditions, UpdateFields
from outplan.contract.messages import EventType, Problem


@dataclass(frozen=True, slots=True)
class Rejected:
    """A command in the queue of rejected ones, as it was sent, with the reasons."""

    message_id: str | None
    name: str
    body: bytes
    problem: Problem


@dataclass(frozen=True, slots=True)
class Document:
    """An outplan as it is stored."""

    outplan: Outplan
    version: int


class OutplanService(Protocol):
    """A worker of a test's own, in a place of its own. Not for use from two threads at once.

    create, update, delete  as the client's of the same names: they return the granted outcome, or
                            raise the CommandRejected that fits, or OutcomeUnknown
    publish                 sends anything, right or wrong, without awaiting the outcome
    next_event              the next event that fits and that ``next_event`` has not returned yet;
                            no event twice. TimeoutError when there is none ``within`` so many
                            seconds
    events                  all events so far, in the order of their arrival, repeats included
    documents, rejected     all that is stored, and all that was rejected, as of now
    kill_worker             is a crash of the worker; pause_worker a hang; start_worker and
                            resume_worker end them
    stop_broker             shuts RabbitMQ down, and start_broker brings it back with all that it
                            had. Raise NotControllable where it is not the tests' own
    """

    async def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the message_id, a new one where none is given. ValueError for a wrong one."""

    async def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result: ...
    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result: ...
    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result: ...

    async def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event: ...
    async def events(self) -> Sequence[Event]: ...
    async def documents(self) -> Sequence[Document]: ...
    async def rejected(self) -> Sequence[Rejected]: ...

    async def kill_worker(self) -> None: ...
    async def start_worker(self) -> None: ...
    async def pause_worker(self) -> None: ...
    async def resume_worker(self) -> None: ...
    async def stop_broker(self) -> None: ...
    async def start_broker(self) -> None: ...

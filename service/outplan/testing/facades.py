"""The harness as tests hold it: awaited in whichever asyncio loop, or blocking.

Both hand every call on to a service that lives in a portal's loop.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack
from uuid import UUID

from outplan.client import Event, Result
from outplan.client.requests import CreateFields, Preconditions, UpdateFields
from outplan.contract.messages import EventType
from outplan.testing.harness import Document, OutplanService, Rejected
from outplan.testing.portal import Portal


class AsyncService:
    """An `OutplanService` for whichever loop a test runs in."""

    def __init__(self, service: OutplanService, portal: Portal) -> None:
        self._service = service
        self._awaited = portal.awaited

    async def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        call = self._service.publish(name, body, message_id=message_id, headers=headers)
        return await self._awaited(call)

    async def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result:
        return await self._awaited(self._service.create(message_id=message_id, **fields))

    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        call = self._service.update(outplan_id, message_id=message_id, **fields)
        return await self._awaited(call)

    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        call = self._service.delete(outplan_id, message_id=message_id, **fields)
        return await self._awaited(call)

    async def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event:
        call = self._service.next_event(kind, outplan_id=outplan_id, within=within)
        return await self._awaited(call)

    async def events(self) -> Sequence[Event]:
        return await self._awaited(self._service.events())

    async def documents(self) -> Sequence[Document]:
        return await self._awaited(self._service.documents())

    async def rejected(self) -> Sequence[Rejected]:
        return await self._awaited(self._service.rejected())

    async def kill_worker(self) -> None:
        await self._awaited(self._service.kill_worker())

    async def start_worker(self) -> None:
        await self._awaited(self._service.start_worker())

    async def pause_worker(self) -> None:
        await self._awaited(self._service.pause_worker())

    async def resume_worker(self) -> None:
        await self._awaited(self._service.resume_worker())

    async def stop_broker(self) -> None:
        await self._awaited(self._service.stop_broker())

    async def start_broker(self) -> None:
        await self._awaited(self._service.start_broker())


class SyncService:
    """`OutplanService` for tests without a loop: the same calls, each returning when it is done."""

    def __init__(self, service: OutplanService, portal: Portal) -> None:
        self._service = service
        self._run = portal.run

    def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        call = self._service.publish(name, body, message_id=message_id, headers=headers)
        return self._run(call)

    def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result:
        return self._run(self._service.create(message_id=message_id, **fields))

    def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        call = self._service.update(outplan_id, message_id=message_id, **fields)
        return self._run(call)

    def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        call = self._service.delete(outplan_id, message_id=message_id, **fields)
        return self._run(call)

    def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event:
        call = self._service.next_event(kind, outplan_id=outplan_id, within=within)
        return self._run(call)

    def events(self) -> Sequence[Event]:
        return self._run(self._service.events())

    def documents(self) -> Sequence[Document]:
        return self._run(self._service.documents())

    def rejected(self) -> Sequence[Rejected]:
        return self._run(self._service.rejected())

    def kill_worker(self) -> None:
        self._run(self._service.kill_worker())

    def start_worker(self) -> None:
        self._run(self._service.start_worker())

    def pause_worker(self) -> None:
        self._run(self._service.pause_worker())

    def resume_worker(self) -> None:
        self._run(self._service.resume_worker())

    def stop_broker(self) -> None:
        self._run(self._service.stop_broker())

    def start_broker(self) -> None:
        self._run(self._service.start_broker())

"""Send the same commands to real servers and to memory, and compare the effects."""

import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from outplan.client import CommandRejected, Event, Outplan
from outplan.testing import AsyncService, Servers
from outplan.testing.live import live_service
from outplan.testing.memory import memory_service
from tests.support.modes import outplan_fields
from tests.support.world import CUSTOMER

FOLDER = Path(__file__).parents[2] / "schemas" / "examples"
COMMANDS = ("outplan_create", "outplan_update", "outplan_delete")
# In this order some of the updates and deletes find an outplan.
EXAMPLES = {
    f"{kind}/{command}/{path.stem}": path.read_bytes()
    for command in COMMANDS
    for kind in ("valid", "invalid")
    for path in sorted((FOLDER / kind / command).glob("*.json"))
}
ASKABLE = [
    path
    for path, body in EXAMPLES.items()
    if isinstance(json.loads(body), dict)
    and ("/outplan_create/" in path or "id" in json.loads(body))
]
SEEDS = range(3)
NAMES = ("", "a", "b", "c", "a\nb", "\N{SNOWMAN}" * 255, "n" * 256)
MILLISECONDS = (0, 30, 1_000, 30_000, 30_000.0, 600_001, 2**31, "1000", None)
NAMESPACE = UUID(int=1)

Document = dict[str, Any]
Both = tuple[AsyncService, AsyncService]


@pytest.fixture(scope="module")
async def both(servers: Servers) -> AsyncIterator[Both]:
    async with memory_service() as memory, live_service(servers) as live:
        yield memory, live


# --- effects without timestamps -------------------------------------------


def strip_times(outplan: Outplan) -> Document:
    times = outplan.model_dump(include={"tm_create", "tm_update", "tm_delete"})
    assert times["tm_create"] <= times["tm_update"]
    assert times["tm_delete"] in (times["tm_update"], "9999-01-01 00:00:00.000000")
    rest = outplan.model_dump(exclude=set(times))
    return {**rest, "deleted": outplan.deleted, "new": times["tm_create"] == times["tm_update"]}


def describe_event(event: Event) -> Document:
    assert event.time == event.data.tm_update
    return {**event.model_dump(exclude={"time"}), "data": strip_times(event.data)}


async def collect_effects(service: AsyncService) -> Document:
    """Collect all data; sort rejected commands by id and documents by id.

    Reading the queue changes its order, and which documents share a batch and so a creation time
    is chance.
    """
    return {
        "events": [describe_event(event) for event in await service.events()],
        "documents": sorted(
            ((strip_times(d.outplan), d.version) for d in await service.documents()),
            key=lambda found: str(found[0]["id"]),
        ),
        "rejected": sorted(
            (copy.message_id or "", copy.name, copy.body, repr(copy.problem))
            for copy in await service.rejected()
        ),
    }


async def call_service(service: AsyncService, name: str, id_: str, body: Document) -> Document:
    """Call create, update or delete and describe what it returns or raises."""
    fields = dict(body)
    try:
        if name == "outplan_create":
            result = await service.create(message_id=id_, **fields)
        elif name == "outplan_update":
            result = await service.update(fields.pop("id"), message_id=id_, **fields)
        else:
            result = await service.delete(fields.pop("id"), message_id=id_, **fields)
    except CommandRejected as error:
        return {"error": type(error), "problem": error.problem}
    return {
        "message_id": result.message_id,
        "status": result.status,
        "duplicate": result.duplicate,
        "version": result.version,
        "outplan": strip_times(result.outplan),
    }


# --- the examples of the contract --------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), EXAMPLES.items(), ids=EXAMPLES)
async def test_an_example_of_the_contract_has_the_same_effect(
    both: Both, path: str, body: bytes
) -> None:
    kind, command, _ = path.split("/")
    found = []
    for service in both:
        await service.publish(command, body, message_id=path)
        # The worker handles the example before this command.
        await service.create(**outplan_fields(), message_id=f"{path} is judged")
        found.append(await collect_effects(service))
    memory, live = found
    assert memory == live
    [problem] = [p for id_, _, _, p in memory["rejected"] if id_ == path] or [""]
    assert kind == "valid" or "invalid_" in problem


@pytest.mark.parametrize("path", ASKABLE)
async def test_an_example_of_the_contract_has_the_same_reply(both: Both, path: str) -> None:
    body, command = json.loads(EXAMPLES[path]), path.split("/")[1]
    memory, live = [await call_service(service, command, f"{path} asked", body) for service in both]
    assert memory == live


# --- commands at random ------------------------------------------------------------------------


@dataclass
class Chance:
    """Generate valid and invalid commands and repeats, the same for the same seed."""

    seed: int
    sent: list[tuple[str, str, Document]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._ids = [str(uuid5(NAMESPACE, f"{self.seed} {n}")) for n in range(4)]

    def command(self) -> tuple[str, str, Document]:
        """Generate a name, a message_id and a body."""
        chance = self._random.random()
        if self.sent and chance < 0.15:
            return self._random.choice(self.sent)
        name, body = self._new()
        id_ = f"{self.seed}.{len(self.sent)}"
        if self.sent and chance < 0.2:
            id_ = self._random.choice(self.sent)[1]
        self.sent.append((name, id_, body))
        return self.sent[-1]

    def _new(self) -> tuple[str, Document]:
        name = self._random.choices(COMMANDS, (3, 8, 1))[0]
        if name == "outplan_create":
            return name, outplan_fields(id=self._random.choice(self._ids), **self._settings())
        body: Document = {"id": self._random.choice(self._ids)}
        if self._random.random() < 0.3:
            body["expected_version"] = self._random.randint(1, 6)
        if self._random.random() < 0.2:
            body["customer_id"] = self._random.choice([CUSTOMER, self._ids[0]])
        return name, body if name == "outplan_delete" else {**body, **self._settings()}

    def _settings(self) -> Document:
        fields: Document = {}
        if self._random.random() < 0.6:
            fields["name"] = self._random.choices(NAMES, (1, 9, 9, 9, 1, 3, 1))[0]
        if self._random.random() < 0.5:
            fields["try_interval"] = self._random.choices(
                MILLISECONDS, (9, 1, 9, 9, 9, 9, 1, 1, 1)
            )[0]
        if self._random.random() < 0.1:
            fields["tries"] = 1
        return fields


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_commands_have_the_same_effect(servers: Servers, seed: int) -> None:
    chance = Chance(seed)
    commands = [(*chance.command(), n % 3 == 0) for n in range(150)]
    answers: list[list[Document]] = []
    found: list[Document] = []
    async with memory_service() as memory, live_service(servers) as live:
        for service in (memory, live):
            answers.append([])
            for name, id_, body, unheard in commands:
                if unheard:
                    await service.publish(name, body, message_id=id_)
                else:
                    answers[-1].append(await call_service(service, name, id_, body))
            found.append(await collect_effects(service))

    assert answers[0] == answers[1]
    assert found[0] == found[1]
    # The commands had every kind of effect.
    assert len(found[0]["events"]) > len(found[0]["documents"]) == 4
    problems = "".join(problem for *_, problem in found[0]["rejected"])
    for code in ("not_found", "already_exists", "version_conflict", "message_id_reused"):
        assert code in problems
    assert {answer.get("status") for answer in answers[0]} == {"accepted", "unchanged", None}
    assert len({event["id"] for event in found[0]["events"]}) < len(found[0]["events"])

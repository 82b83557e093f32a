"""Upgrade an installation whose documents break rules that came after they were stored."""

import json
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import pytest
from pymongo.errors import WriteError

from outplan.client import Event, Events, OutplanClient, events
from outplan.contract.fields import EARLIER_RULES, NEVER
from outplan.contract.messages import COMMANDS
from outplan.domain.codec import compute_digest
from outplan.mongodb.validators import EVENTS, OUTPLANS, build_validators
from outplan.testing import Deployment
from tests.support.shell import outplan
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, World

TIME: Final = "2025-04-28 01:50:23.414000"
TEXTS: Final[dict[str, Any]] = {
    "name": " \u2028\u202e",
    "detail": "a\x00b\x1b[2J",
    "source": {
        "type": "sip",
        "target": "a@b\r\nX-Injected: yes",
        "target_name": "\x00",
        "name": " ",
        "detail": "\x9b",
    },
}


@dataclass
class Stored:
    """A create as it was published, and its command's id."""

    command_id: str
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.body["id"])


async def store_as_before(world: World) -> Stored:
    """Store an outplan as a version without rules on characters did, under its validators."""
    stored = Stored(str(uuid4()), {"id": str(uuid4()), "customer_id": CUSTOMER, **TEXTS})
    for name, validator in build_validators().items():
        validator["$jsonSchema"].pop("allOf", None)
        await world.database.create_collection(name, validator=validator)
    command = COMMANDS["outplan_create"].model_validate(stored.body, context=EARLIER_RULES)
    times = {"tm_create": TIME, "tm_update": TIME, "tm_delete": NEVER}
    document = {**command.model_dump(exclude={"id"}), **times}
    await world.database[OUTPLANS].insert_one({"_id": stored.id, **document, "version": 1})
    await world.database[EVENTS].insert_one(
        {
            "_id": stored.command_id,
            "outplan_id": stored.id,
            "customer_id": CUSTOMER,
            "version": 1,
            "type": "outplan_created",
            "time": TIME,
            "digest": compute_digest("outplan_create", command),
            "data": {"id": stored.id, **document},
        }
    )
    return stored


async def take_event(subscription: Events) -> Event:
    item = await anext(subscription)
    assert isinstance(item, Event)
    return item


async def test_a_document_from_before_a_rule_is_read_updated_and_deleted(
    deployment: Deployment, world: World
) -> None:
    stored = await store_as_before(world)
    async with (
        run_worker(deployment),
        events(deployment.amqp_url, prefix=deployment.prefix) as subscription,
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client,
    ):
        updated = await client.update(stored.id, dial_timeout=20_000)
        assert (updated.version, updated.outplan.name) == (2, TEXTS["name"])
        deleted = await client.delete(stored.id)
        received = [await take_event(subscription) for _ in range(2)]

    assert (deleted.version, deleted.outplan.deleted) == (3, True)
    assert [event.type for event in received] == ["outplan_updated", "outplan_deleted"]
    for event in received:
        assert event.data.source.model_dump() == TEXTS["source"]
    document = await world.find_document(stored.id)
    assert document is not None
    assert (document["version"], document["source"]) == (3, TEXTS["source"])


async def test_an_event_that_the_earlier_version_did_not_publish_is_published(
    deployment: Deployment, world: World
) -> None:
    """Its worker stored the event and died, and the broker redelivers the command to a new one."""
    stored = await store_as_before(world)
    await world.send("outplan_create", stored.body, message_id=stored.command_id)
    async with run_worker(deployment):
        event = await world.wait_for_event(stored.command_id)
    assert (event["version"], event["data"]["source"]) == (1, TEXTS["source"])
    assert world.rejected == []


async def test_a_command_may_not_set_such_text_again(deployment: Deployment, world: World) -> None:
    stored = await store_as_before(world)
    async with run_worker(deployment):
        again = await world.ask("outplan_create", {**stored.body, "id": str(uuid4())})
        update = await world.ask("outplan_update", {"id": stored.id, **TEXTS})
        mended = await world.ask("outplan_update", {"id": stored.id, "name": "mended"})
    pointers = [
        "/detail", "/name", "/source/detail", "/source/name", "/source/target",
        "/source/target_name",
    ]  # fmt: skip
    for reply in (again, update):
        assert reply["problem"]["code"] == "invalid_command"
        assert sorted({e["pointer"] for e in reply["problem"]["errors"]}) == pointers
    assert (mended["status"], mended["version"]) == ("accepted", 2)


async def test_the_worker_tightens_the_validators_for_new_documents_only(
    deployment: Deployment, world: World
) -> None:
    stored = await store_as_before(world)
    async with run_worker(deployment):
        await world.ask("outplan_update", {"id": stored.id, "dial_timeout": 20_000})
        report = await outplan(deployment, "check", "--json")
    document = await world.find_document(stored.id)
    assert document is not None
    with pytest.raises(WriteError, match="failed validation"):
        await world.database[OUTPLANS].insert_one({**document, "_id": str(uuid4())})
    findings = [json.loads(line) for line in report.out.splitlines()]
    [collection] = [f for f in findings if f["point"] == "collection outplans"]
    assert collection["state"] == "ok"

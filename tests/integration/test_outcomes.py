"""Test every outcome and every problem code of each command through the broker."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from outplan.contract import schemas
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, EVENT_QUEUE, TEL, Document, World, create_body, open_world

OTHER_CUSTOMER = "0a1b2c3d-0000-4000-8000-000000000001"
NEVER = "9999-01-01 00:00:00.000000"
SETTABLE_DEFAULTS: Document = {
    "detail": "",
    "dial_timeout": 30_000,
    "try_interval": 60_000,
    **{f"max_try_count_{n}": 0 for n in range(5)},
}


@pytest.fixture(scope="module")
async def world(servers: Servers) -> AsyncIterator[World]:
    async with (
        open_deployment(servers, further_queues=[EVENT_QUEUE]) as deployment,
        open_world(deployment) as found,
        run_worker(deployment),
    ):
        yield found


async def create_outplan(world: World, **fields: Any) -> Document:
    reply = await world.ask("outplan_create", create_body(**fields))
    assert reply["status"] == "accepted"
    outplan: Document = reply["outplan"]
    return outplan


async def assert_rejected(
    world: World, name: str, body: Document, code: str, **properties: Any
) -> Document:
    """Send a command and check everything about its rejection; return the problem."""
    id_ = properties.setdefault("message_id", str(uuid4()))
    stored = await world.read_documents()
    reply = await world.ask(name, body, **properties)
    problem: Document = reply["problem"]
    assert schemas.find_violations("reply", reply) == ()
    assert (reply["status"], problem["code"], reply["duplicate"]) == ("rejected", code, False)
    assert problem["type"] == f"urn:outplan:problem:{code.replace('_', '-')}"
    assert problem["command_id"] == reply["command_id"] == id_
    copy = await world.wait_for_rejected(id_)
    assert copy.headers["x-problem-code"] == code
    assert json.loads(str(copy.headers["x-problem"])) == problem
    assert await world.read_documents() == stored
    return problem


async def test_a_create_is_stored_published_and_replied(world: World) -> None:
    reply = await world.ask("outplan_create", create_body(max_try_count_0=5), message_id="create-1")
    outplan = reply["outplan"]
    event = await world.wait_for_event("create-1")

    assert (reply["status"], reply["duplicate"], reply["version"]) == ("accepted", False, 1)
    assert reply["command_id"] == "create-1"
    assert outplan == {
        "id": outplan["id"],
        **create_body(),
        "source": {**TEL, "target_name": "", "name": "", "detail": ""},
        **SETTABLE_DEFAULTS,
        "max_try_count_0": 5,
        "tm_create": event["time"],
        "tm_update": event["time"],
        "tm_delete": NEVER,
    }
    assert list(event) == ["id", "type", "publisher", "data_type", "version", "time", "data"]
    assert event == {
        "id": "create-1",
        "type": "outplan_created",
        "publisher": "outplan-service",
        "data_type": "application/json",
        "version": 1,
        "time": event["time"],
        "data": outplan,
    }
    stored = {**outplan, "_id": outplan["id"], "version": 1}
    del stored["id"]
    assert await world.find_document(outplan["id"]) == stored
    (record,) = await world.read_history(outplan["id"])
    assert record.pop("digest")
    assert record == {
        "_id": "create-1",
        "outplan_id": outplan["id"],
        "customer_id": CUSTOMER,
        "version": 1,
        "type": "outplan_created",
        "time": event["time"],
        "data": outplan,
    }


async def test_an_event_has_the_properties_and_headers_of_the_contract(world: World) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = await world.ask(
        "outplan_create",
        create_body(),
        message_id="traced",
        correlation_id="the-call",
        headers={"traceparent": trace, "tracestate": "a=1", "other": "stays here"},
    )
    await world.wait_for_event("traced")
    event = next(e for e in world.events if e.message_id == "traced")

    id_ = reply["outplan"]["id"]
    assert event.routing_key == f"outplan_created.{CUSTOMER}.{id_}"
    assert event.exchange == f"{world.deployment.prefix}.events"
    assert event.headers == {
        "outplan_id": id_,
        "customer_id": CUSTOMER,
        "version": 1,
        "traceparent": trace,
        "tracestate": "a=1",
    }
    assert (event.type, event.correlation_id) == ("outplan_created", "the-call")
    assert (event.content_type, event.app_id) == ("application/json", "outplan-service")
    assert event.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert event.timestamp is not None
    assert event.timestamp.strftime("%Y-%m-%d %H:%M:%S") == json.loads(event.body)["time"][:19]


async def test_a_create_without_an_id_gets_one_from_its_message_id(world: World) -> None:
    first = await world.ask("outplan_create", create_body(), message_id="derive")
    again = await world.ask("outplan_create", create_body(), message_id="derive")
    other = await world.ask("outplan_create", create_body(), message_id="derive-other")

    assert first["outplan"]["id"] == again["outplan"]["id"] != other["outplan"]["id"]


async def test_a_create_with_an_id_in_use_already_exists(world: World) -> None:
    outplan = await create_outplan(world)
    body = create_body(id=outplan["id"], customer_id=OTHER_CUSTOMER)

    problem = await assert_rejected(world, "outplan_create", body, "already_exists")

    assert problem["status"] == 409
    assert CUSTOMER not in json.dumps(problem)


async def test_a_create_with_the_id_of_a_deleted_outplan_already_exists(world: World) -> None:
    outplan = await create_outplan(world)
    await world.ask("outplan_delete", {"id": outplan["id"]})

    await assert_rejected(world, "outplan_create", create_body(id=outplan["id"]), "already_exists")


async def test_an_update_changes_its_fields_and_lists_the_changed_ones(world: World) -> None:
    outplan = await create_outplan(world)
    body = {"id": outplan["id"], "try_interval": 0, "name": "renamed", "detail": ""}

    reply = await world.ask("outplan_update", body, message_id="update-1")
    event = await world.wait_for_event("update-1")

    expected = {**outplan, "try_interval": 0, "name": "renamed", "tm_update": event["time"]}
    assert (reply["status"], reply["version"], reply["outplan"]) == ("accepted", 2, expected)
    assert (event["type"], event["version"]) == ("outplan_updated", 2)
    assert sorted(event["changed"]) == ["name", "try_interval"]
    assert event["data"] == expected
    assert expected["tm_update"] > outplan["tm_update"]
    document = await world.find_document(outplan["id"])
    assert document is not None
    assert (document["version"], document["try_interval"]) == (2, 0)


async def test_an_update_replaces_the_whole_source(world: World) -> None:
    outplan = await create_outplan(world, source={**TEL, "name": "desk", "detail": "third floor"})
    source = {"type": "sip", "target": "alice@example.com"}

    reply = await world.ask("outplan_update", {"id": outplan["id"], "source": source})

    assert reply["outplan"]["source"] == {**source, "target_name": "", "name": "", "detail": ""}


async def test_an_update_without_changes_stores_and_publishes_nothing(world: World) -> None:
    outplan = await create_outplan(world)
    body = {"id": outplan["id"], "dial_timeout": 30_000.0, "source": TEL}
    stored = await world.read_documents()

    reply = await world.ask("outplan_update", body, message_id="same")

    assert schemas.find_violations("reply", reply) == ()
    assert (reply["status"], reply["version"]) == ("unchanged", 1)
    assert reply["outplan"] == outplan
    assert await world.read_documents() == stored
    assert world.find_events("same") == []


async def test_an_unchanged_command_is_decided_again_when_resent(world: World) -> None:
    outplan = await create_outplan(world)
    body = {"id": outplan["id"], "dial_timeout": 30_000}
    first = await world.ask("outplan_update", body, message_id="resent")
    await world.ask("outplan_update", {"id": outplan["id"], "dial_timeout": 40_000})

    again = await world.ask("outplan_update", body, message_id="resent")

    assert [first["status"], again["status"], again["version"]] == ["unchanged", "accepted", 3]


async def test_a_rejected_command_is_decided_again_when_resent(world: World) -> None:
    id_ = str(uuid4())
    body = {"id": id_, "name": "early"}
    await assert_rejected(world, "outplan_update", body, "not_found", message_id="early")
    await create_outplan(world, id=id_)

    reply = await world.ask("outplan_update", body, message_id="early")

    assert (reply["status"], reply["duplicate"], reply["version"]) == ("accepted", False, 2)


@pytest.mark.parametrize("name", ["outplan_update", "outplan_delete"])
async def test_an_unknown_outplan_is_not_found(world: World, name: str) -> None:
    body = {"id": str(uuid4())} | ({"name": "x"} if name == "outplan_update" else {})

    problem = await assert_rejected(world, name, body, "not_found")

    assert problem["status"] == 404


@pytest.mark.parametrize("name", ["outplan_update", "outplan_delete"])
async def test_another_customers_outplan_is_not_found(world: World, name: str) -> None:
    outplan = await create_outplan(world)
    body = {"id": outplan["id"], "customer_id": OTHER_CUSTOMER}
    body |= {"name": "x"} if name == "outplan_update" else {}

    problem = await assert_rejected(world, name, body, "not_found")

    assert CUSTOMER not in json.dumps(problem)


@pytest.mark.parametrize("name", ["outplan_update", "outplan_delete"])
async def test_an_old_expected_version_is_a_version_conflict(world: World, name: str) -> None:
    outplan = await create_outplan(world)
    await world.ask("outplan_update", {"id": outplan["id"], "name": "second"})
    body = {"id": outplan["id"], "expected_version": 1}
    body |= {"name": "third"} if name == "outplan_update" else {}

    problem = await assert_rejected(world, name, body, "version_conflict")

    assert (problem["status"], problem["current_version"]) == (412, 2)


@pytest.mark.parametrize("name", ["outplan_update", "outplan_delete"])
async def test_a_current_expected_version_is_accepted(world: World, name: str) -> None:
    outplan = await create_outplan(world)
    body = {"id": outplan["id"], "customer_id": CUSTOMER, "expected_version": 1}
    body |= {"name": "second"} if name == "outplan_update" else {}

    assert (await world.ask(name, body))["version"] == 2


async def test_a_delete_sets_tm_delete_and_publishes_an_event(world: World) -> None:
    outplan = await create_outplan(world)

    reply = await world.ask("outplan_delete", {"id": outplan["id"]}, message_id="delete-1")
    event = await world.wait_for_event("delete-1")

    deleted = {**outplan, "tm_update": event["time"], "tm_delete": event["time"]}
    assert (reply["status"], reply["version"], reply["outplan"]) == ("accepted", 2, deleted)
    assert (event["type"], event["data"], "changed" in event) == ("outplan_deleted", deleted, False)


async def test_a_repeated_delete_is_unchanged(world: World) -> None:
    outplan = await create_outplan(world)
    await world.ask("outplan_delete", {"id": outplan["id"]})

    reply = await world.ask("outplan_delete", {"id": outplan["id"]})

    assert (reply["status"], reply["version"]) == ("unchanged", 2)


async def test_a_deleted_outplan_cannot_be_updated(world: World) -> None:
    outplan = await create_outplan(world)
    await world.ask("outplan_delete", {"id": outplan["id"]})

    body = {"id": outplan["id"], "name": "too late"}
    await assert_rejected(world, "outplan_update", body, "not_found")


@pytest.mark.parametrize("name", ["outplan_create", "outplan_update", "outplan_delete"])
async def test_a_resent_command_is_a_duplicate(world: World, name: str) -> None:
    outplan = await create_outplan(world)
    body: Document = {
        "outplan_create": create_body(name="twice"),
        "outplan_update": {"id": outplan["id"], "name": "twice", "dial_timeout": 31_000},
        "outplan_delete": {"id": outplan["id"]},
    }[name]
    id_ = f"twice-{name}"
    first = await world.ask(name, body, message_id=id_)
    if name == "outplan_update":
        await world.ask(name, {"id": outplan["id"], "name": "and on"})

    reformatted = json.dumps(dict(reversed(body.items())), indent=3).replace("31000", "31000.0")
    again = await world.ask(name, reformatted.encode(), message_id=id_)

    assert again == {**first, "duplicate": True}
    await world.wait_for(lambda: len(world.find_events(id_)) == 2)
    one, two = [e for e in world.events if e.message_id == id_]
    assert one.body == two.body
    assert one.headers == two.headers
    assert await world.database["outplan_events"].count_documents({"_id": id_}) == 1


@pytest.mark.parametrize("name", ["outplan_create", "outplan_update", "outplan_delete"])
async def test_a_message_id_with_another_body_is_rejected(world: World, name: str) -> None:
    outplan = await create_outplan(world)
    await world.ask("outplan_create", create_body(name="one"), message_id=f"reused-{name}")
    body: Document = {
        "outplan_create": create_body(name="two"),
        "outplan_update": {"id": outplan["id"], "name": "two"},
        "outplan_delete": {"id": outplan["id"]},
    }[name]

    problem = await assert_rejected(
        world, name, body, "message_id_reused", message_id=f"reused-{name}"
    )

    assert problem["status"] == 409


@pytest.mark.parametrize("name", ["outplan_create", "outplan_update", "outplan_delete"])
async def test_an_invalid_command_gets_every_validation_error(world: World, name: str) -> None:
    body: Document = {
        "outplan_create": {"name": "", "source": {"type": "tel", "target": "12"}, "dial": 1},
        "outplan_update": {"id": str(uuid4()), "dial_timeout": 30, "try_interval": 60, "nam": ""},
        "outplan_delete": {"id": "7", "force": True},
    }[name]

    problem = await assert_rejected(world, name, body, "invalid_command")

    pointers = {error["pointer"] for error in problem["errors"]}
    assert (
        pointers
        == {
            "outplan_create": {"/customer_id", "/name", "/source/target", "/dial"},
            "outplan_update": {"/dial_timeout", "/try_interval", "/nam"},
            "outplan_delete": {"/id", "/force"},
        }[name]
    )
    assert problem["status"] == 422


async def test_a_command_without_a_message_id_is_rejected(world: World) -> None:
    body = json.dumps(create_body()).encode()
    reply = await world.ask_raw("outplan_create", body, headers={"mark": "nameless"})

    assert reply["problem"]["code"] == "missing_message_id"
    assert reply["command_id"] is None
    copy = await world.wait_for_rejected(None)
    assert (copy.headers["mark"], copy.message_id) == ("nameless", None)


@pytest.mark.parametrize("name", ["outplan_explode", "outplan.create", "", "#"])
async def test_an_unknown_command_is_rejected(world: World, name: str) -> None:
    problem = await assert_rejected(world, name, create_body(), "unknown_command")

    assert problem["status"] == 400


async def test_a_rejected_copy_keeps_everything_and_adds_headers(world: World) -> None:
    body = b'{"id": "7",\n   "name": "as it was"}'
    sent: dict[str, Any] = {
        "content_type": "application/vnd.example+json",
        "content_encoding": "utf-8",
        "correlation_id": "corr",
        "priority": 3,
        "expiration": 3_600,
        "type": "outplan_update",
        "app_id": "a publisher",
        "timestamp": 1_700_000_000,
        "headers": {"outplan_id": "7", "number": 5, "pi": 3.5, "list": [1, "b"], "none": None},
    }
    await world.ask("elsewhere", body, message_id="as-sent", **sent)
    copy = await world.wait_for_rejected("as-sent")

    assert copy.body == body
    assert (copy.routing_key, copy.exchange) == (f"{world.deployment.prefix}.rejected", "")
    for name in ("content_type", "content_encoding", "correlation_id", "priority", "type"):
        assert getattr(copy, name) == sent[name]
    assert (copy.app_id, copy.expiration) == ("a publisher", 3_600)
    assert copy.timestamp is not None
    assert copy.timestamp.timestamp() == 1_700_000_000
    assert copy.reply_to == world.reply_queue.name
    added = {k: v for k, v in copy.headers.items() if k not in sent["headers"]}
    assert {k: copy.headers[k] for k in sent["headers"]} == sent["headers"]
    assert sorted(added) == [
        "x-original-exchange",
        "x-original-routing-key",
        "x-problem",
        "x-problem-code",
        "x-rejected-at",
    ]
    assert added["x-original-exchange"] == f"{world.deployment.prefix}.commands"
    assert added["x-original-routing-key"] == "elsewhere"


async def test_a_rejected_copy_keeps_the_user_id(world: World) -> None:
    reply = await world.ask("outplan_create", b"{}", message_id="whose", user_id="guest")
    copy = await world.wait_for_rejected("whose")

    assert reply["problem"]["code"] == "invalid_command"
    assert copy.user_id == "guest"


async def test_a_missing_reply_queue_is_no_error(world: World) -> None:
    id_ = await world.send("outplan_create", create_body(), reply_to="nobody.is.here")

    assert (await world.wait_for_event(id_))["version"] == 1
    assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"


async def test_a_command_without_reply_to_takes_effect(world: World) -> None:
    id_ = await world.send("outplan_create", create_body(), reply_to=None)
    wrong = await world.send("outplan_create", {}, reply_to=None)

    assert (await world.wait_for_event(id_))["version"] == 1
    assert (await world.wait_for_rejected(wrong)).headers["x-problem-code"] == "invalid_command"
    assert not world.replies[id_]


async def test_without_a_correlation_id_the_reply_has_the_message_id(world: World) -> None:
    id_ = await world.send("outplan_create", create_body(), correlation_id=None)

    await world.wait_for(lambda: bool(world.replies[id_]))
    assert world.replies[id_][0]["command_id"] == id_


async def test_the_type_property_overrides_the_routing_key(world: World) -> None:
    outplan = await create_outplan(world)

    reply = await world.ask("outplan_create", {"id": outplan["id"]}, type="outplan_delete")

    assert reply["outplan"]["tm_delete"] != NEVER


async def test_a_command_sent_to_the_queue_is_named_by_its_type(world: World) -> None:
    reply = await world.ask(None, create_body(), to_queue=True, type="outplan_create")
    nameless = await world.ask(None, create_body(), to_queue=True)

    assert reply["status"] == "accepted"
    assert nameless["problem"]["code"] == "unknown_command"


async def test_direct_reply_to_works(world: World) -> None:
    async with await aio_pika.connect(world.deployment.amqp_url) as connection:
        channel = await connection.channel()
        direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        async with direct.iterator(no_ack=True) as replies:
            exchange = await channel.get_exchange(f"{world.deployment.prefix}.commands")
            body = json.dumps(create_body()).encode()
            message = aio_pika.Message(body, message_id="direct", reply_to="amq.rabbitmq.reply-to")
            await exchange.publish(message, "outplan_create")
            reply = await anext(replies)

    assert json.loads(reply.body)["status"] == "accepted"


async def test_uuids_are_stored_in_lower_case(world: World) -> None:
    id_ = str(uuid4())
    agent = {"type": "agent", "target": str(uuid4()).upper()}
    body = create_body(id=id_.upper(), customer_id=CUSTOMER.upper(), source=agent)

    reply = await world.ask("outplan_create", body)
    renamed = await world.ask("outplan_update", {"id": id_.upper(), "name": "found"})

    assert (reply["outplan"]["id"], reply["outplan"]["customer_id"]) == (id_, CUSTOMER)
    assert reply["outplan"]["source"]["target"] == agent["target"].lower()
    assert renamed["version"] == 2

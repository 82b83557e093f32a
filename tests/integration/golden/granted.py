"""Commands that do something: creates, updates, deletes, and the same ones again."""

import json
from typing import Any

from tests.integration.golden.command import (
    AGENT,
    CUSTOMER,
    OTHER_CUSTOMER,
    TEL,
    TRACE,
    Command,
    Document,
    command,
    create,
    delete,
    new,
    new_json,
    outplan,
    update,
)


def creates() -> list[Command]:
    everything = {
        "id": outplan(1),
        "customer_id": CUSTOMER,
        "name": "evenings, twice",
        "detail": "outplan for test use.",
        "source": {**TEL, "target_name": "desk", "name": "Sales", "detail": "third floor"},
        "dial_timeout": 31_000,
        "try_interval": 3_600_000,
        **{f"max_try_count_{n}": n + 1 for n in range(5)},
    }
    respelt = json.dumps(dict(reversed(new(id=outplan(5), name="respelt").items())), indent=3)
    numbers = (
        json.dumps(new(id=outplan(6), dial_timeout=1, try_interval=2, max_try_count_0=3))
        .replace('"dial_timeout": 1', '"dial_timeout": 30000.0')
        .replace('"try_interval": 2', '"try_interval": 6E4')
        .replace('"max_try_count_0": 3', '"max_try_count_0": -0.0')
    )
    name = "Ελλάδα \u200f\u05e9\u05dc\u05d5\u05dd 日本 e\u0301 \U0001f469\u200d\U0001f467 ключ"
    unicode = json.dumps(new(id=outplan(10), name=name), ensure_ascii=False)
    twice = new_json(id=outplan(12)).replace(b'"name"', b'"name": "the first", "name"')
    agent = {"type": "agent", "target": AGENT.upper()}
    return [
        command("create all fields", "outplan_create", everything),
        create("create with defaults", id=outplan(2)),
        create("create without id"),
        create("0192f0c1-7a51-7b7e-a2f5-d7a0e9a4b1c3", name="no id, and a UUID for message_id"),
        create(
            "create upper-case UUIDs",
            id=outplan(4).upper(),
            customer_id=CUSTOMER.upper(),
            source=agent,
        ),
        command("create keys reversed and spaced", "outplan_create", respelt.encode()),
        command("create integers as floats", "outplan_create", numbers.encode()),
        create(
            "create least values",
            id=outplan(7), name="x", detail="", dial_timeout=1_000, try_interval=0,
        ),
        create(
            "create greatest values",
            id=outplan(8), name="📞" * 255, dial_timeout=600_000, try_interval=2_147_483_647,
            **{f"max_try_count_{n}": 1_000 for n in range(5)},
        ),
        create(
            "create odd detail",
            id=outplan(9), detail="a\n\t\r\"quoted\" \\ </script> \u202e",
        ),
        command("create Unicode unescaped", "outplan_create", unicode.encode()),
        create("create Unicode escaped", id=outplan(11), name="Ωμέγα 😀"),
        command("create a key twice", "outplan_create", twice),
        create("create try_interval of a second", id=outplan(13), try_interval=1_000),
    ]  # fmt: skip


def addresses() -> list[Command]:
    targets = {
        "tel": "+1234567",
        "whatsapp": "+123456789012345",
        "email": "o'neil+sales@mail.example.com",
        "sip": "alice@pbx.example.com:5060;transport=tls",
        "agent": AGENT,
        "ai": AGENT.upper(),
        "ai_team": AGENT,
        "conference": AGENT,
        "webchat": AGENT.title(),
        "web_session": AGENT,
        "extension": "2001",
        "line": "línea 1 and more",
    }
    return [
        create(f"create from {kind}", id=outplan(20 + n), source={"type": kind, "target": target})
        for n, (kind, target) in enumerate(targets.items())
    ]


def updates() -> list[Command]:
    id_ = outplan(40)
    whole = {**TEL, "target_name": "", "name": "", "detail": ""}
    agent = {"type": "agent", "target": AGENT}
    last = {"name": "last", "detail": "last", "source": agent, "dial_timeout": 50_000,
            "try_interval": 0, **{f"max_try_count_{n}": 9 - n for n in range(5)}}  # fmt: skip
    floats = b'{"id": "%s", "dial_timeout": 31000.0, "expected_version": 2.0}' % id_.encode()
    return [
        create("create to update", id=id_, dial_timeout=30_000),
        update("update one field", id_, dial_timeout=31_000),
        command("update no field, floats", "outplan_update", floats, "unchanged"),
        update("update no field, all defaults", id_, "unchanged", detail="", max_try_count_4=0),
        command(
            "update no field, no reply", "outplan_update", {"id": id_, "detail": ""}, "unchanged",
            less=["reply_to"],
        ),
        update(
            "update many fields, keys out of order", id_,
            max_try_count_3=7, try_interval=61_000, name="renamed", detail="", max_try_count_0=1,
        ),
        update("update some of the given fields", id_, name="renamed", detail="new"),
        update("update source", id_, source={"type": "sip", "target": "alice@example.com"}),
        update("update source back", id_, source=TEL),
        update("update source with its defaults", id_, "unchanged", source=whole),
        update("update source to an agent", id_, source=agent),
        update(
            "update source in upper case", id_, "unchanged",
            source={"type": "agent", "target": AGENT.upper()},
        ),
        update("update by upper-case id", id_.upper(), name="found"),
        update("update as its customer", id_, customer_id=CUSTOMER, name="his"),
        update("update as its customer, upper case", id_, customer_id=CUSTOMER.upper(), name="H"),
        update("update as another customer", id_, "rejected", customer_id=OTHER_CUSTOMER, name="x"),
        update("update expected version", id_, expected_version=10, name="eleventh"),
        update("update passed version", id_, "rejected", expected_version=10, name="no"),
        update("update future version", id_, "rejected", expected_version=12, name="no"),
        update(
            "update passed version without a change", id_, "rejected",
            expected_version=1, name="eleventh",
        ),
        update(
            "update passed version of another customer", id_, "rejected",
            expected_version=1, customer_id=OTHER_CUSTOMER, name="no",
        ),
        update("update what is not there", outplan(404), "rejected", name="no"),
        update("update all fields", id_, **last),
        update("update Unicode", id_, name="Ελλάδα 日本 😀", detail="\u200e"),
    ]  # fmt: skip


def deletes() -> list[Command]:
    id_, other = outplan(60), outplan(61)
    return [
        create("create to delete", id=id_),
        create("create to delete with conditions", id=other, customer_id=OTHER_CUSTOMER),
        create("create a live id", "rejected", id=id_, customer_id=OTHER_CUSTOMER),
        delete("delete as another customer", id_, "rejected", customer_id=OTHER_CUSTOMER),
        delete("delete passed version", id_, "rejected", expected_version=2),
        delete("delete", id_),
        delete("delete again", id_, "unchanged"),
        delete("delete again, expected version", id_, "unchanged", expected_version=2),
        delete("delete again, passed version", id_, "rejected", expected_version=1),
        delete("delete again, another customer", id_, "rejected", customer_id=OTHER_CUSTOMER),
        update("update after delete", id_, "rejected", name="too late"),
        update("update after delete, old version", id_, "rejected", name="x", expected_version=1),
        create("create a deleted id", "rejected", id=id_),
        delete("delete what is not there", outplan(404), "rejected"),
        delete(
            "delete with conditions", other.upper(),
            customer_id=OTHER_CUSTOMER, expected_version=1,
        ),
    ]  # fmt: skip


def resends() -> list[Command]:
    """Send message_ids again: with the same content, and with other content."""
    id_ = outplan(70)
    body = new(id=id_, name="twice", dial_timeout=31_000)
    respelt = json.dumps({**dict(reversed(body.items())), "detail": "", "dial_timeout": 31_000.0})
    rename = {"id": id_, "name": "second"}

    def again(label: str, name: str, sent: Document | bytes, of: str, **how: Any) -> Command:
        outcome = how.pop("outcome", "accepted")
        return command(label, name, sent, outcome, message_id=of, **how)

    return [
        command("create twice", "outplan_create", body),
        again("create twice: same bytes", "outplan_create", body, "create twice"),
        again("create twice: respelt", "outplan_create", respelt.encode(), "create twice"),
        command("update twice", "outplan_update", rename, headers=[("traceparent", "S", TRACE)]),
        update("update since", id_, name="third"),
        again(
            "update twice: without trace", "outplan_update", rename, "update twice",
            correlation_id="another", headers=[("tracestate", "S", "a=1")],
        ),
        again("update twice: mute", "outplan_update", rename, "update twice", less=["reply_to"]),
        delete("delete twice", id_),
        again("delete twice: same bytes", "outplan_delete", {"id": id_}, "delete twice"),
        again("create twice: deleted since", "outplan_create", body, "create twice"),
        again(
            "create twice: other content", "outplan_create", {**body, "name": "other"},
            "create twice", outcome="rejected",
        ),
        again(
            "update twice: other content", "outplan_update", {**rename, "detail": "x"},
            "update twice", outcome="rejected",
        ),
        again(
            "create twice: as a delete", "outplan_delete", {"id": id_},
            "create twice", outcome="rejected",
        ),
        again("create twice: invalid", "outplan_create", b"{}", "create twice", outcome="rejected"),
        # A command that left no event is judged afresh.
        create("create to judge afresh", id=outplan(71)),
        update("unchanged at first", outplan(71), "unchanged", name="test outplan"),
        update("update between", outplan(71), name="between"),
        again(
            "unchanged at first: again", "outplan_update",
            {"id": outplan(71), "name": "test outplan"}, "unchanged at first",
        ),
        update("not found at first", outplan(72), "rejected", name="early"),
        create("create in time", id=outplan(72)),
        again(
            "not found at first: again", "outplan_update", {"id": outplan(72), "name": "early"},
            "not found at first",
        ),
    ]  # fmt: skip

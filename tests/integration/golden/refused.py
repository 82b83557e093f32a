"""Commands that are rejected for what they contain, or for what they lack."""

from typing import Any, Final

from tests.integration.golden.command import (
    AGENT,
    CUSTOMER,
    NIL,
    TEL,
    Command,
    Document,
    command,
    create,
    new_json,
    outplan,
    update,
)

# An empty object, compressed. Different versions of zlib compress differently.
GZIP: Final = bytes.fromhex("1f8b0800000000000203abae050043bfa6a302000000")


def invalid_json() -> list[Command]:
    value = new_json(dial_timeout=-1)
    bodies = {
        "empty body": b"",
        "white space": b" \n",
        "not UTF-8": new_json().replace(b"test", b"t\xffst"),
        "UTF-16": b"\xff\xfe" + new_json().decode().encode("utf-16-le"),
        "byte order mark": b"\xef\xbb\xbf" + new_json(),
        "NaN": value.replace(b"-1", b"NaN"),
        "Infinity": value.replace(b"-1", b"-Infinity"),
        "number past all floats": value.replace(b"-1", b"1e999"),
        "nested arrays": b"[" * 2_000 + b"]" * 2_000,
        "nested objects": b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        "lone surrogate": new_json().replace(b"test", b"\\ud800"),
        "surrogate in UTF-8": new_json().replace(b"test", b"\xed\xa0\x80"),
        "array": b"[1]",
        "null": b"null",
        "string": b'"text"',
        "two objects": b"{} {}",
        "trailing comma": b'{"id": "7",}',
        "cut off": new_json()[:40],
        "single quotes": b"{'id': 7}",
        "comment": b"{} // nothing",
        "control character in a string": b'{"name": "a\nb"}',
    }
    return [
        *(command(label, "outplan_create", body, "rejected") for label, body in bodies.items()),
        command("gzip", "outplan_create", GZIP, "rejected", content_encoding="gzip"),
        command(
            "unread encoding", "outplan_create", new_json(), "rejected", content_encoding="UTF-16",
        ),
        command(
            "encoding that is no text", "outplan_create", new_json(), "rejected",
            content_encoding=b"\xff\xfe",
        ),
        command(
            "long encoding", "outplan_create", new_json(), "rejected", content_encoding="x" * 200
        ),
    ]  # fmt: skip


def refused_unread() -> list[Command]:
    """Leave out message_ids, and name commands that there are not."""

    def nameless(label: str, body: bytes = b"{}", **how: Any) -> Command:
        return command(label, "outplan_create", body, "rejected", **how)

    def unknown(label: str, name: str | bytes, **how: Any) -> Command:
        return command(label, name, new_json(), "rejected", **how)

    return [
        nameless("no message_id", new_json(), less=["message_id"]),
        nameless("no message_id, no reply", less=["message_id", "reply_to", "correlation_id"]),
        nameless("no message_id, no correlation_id", less=["message_id", "correlation_id"]),
        nameless("empty message_id", message_id=""),
        nameless("message_id that is no text", message_id=b"\xff\xfe"),
        command("no message_id, unknown command", "no.such", b"", "rejected", less=["message_id"]),
        unknown("unknown command", "outplan_explode"),
        unknown("unknown command with a dot", "outplan.create"),
        unknown("unknown command in upper case", "OUTPLAN_CREATE"),
        unknown("no routing key", ""),
        unknown("routing key that is no text", b"\xc3\x28"),
        unknown("long routing key", "k" * 200),
        unknown("unknown type", "outplan_create", type="outplan_created"),
        unknown("type that is no text", "outplan_create", type=b"\xc3\x28"),
        command("unknown command, invalid JSON", "no.such", b"[", "rejected"),
    ]


def invalid() -> list[Command]:
    def no_create(label: str, **fields: Any) -> Command:
        return create(label, "rejected", **fields)

    def no_update(label: str, **fields: Any) -> Command:
        return update(label, outplan(40), "rejected", **fields)

    def raw(label: str, number: str) -> Command:
        body = new_json(dial_timeout=-1).replace(b"-1", number.encode())
        return command(label, "outplan_create", body, "rejected")

    fields = [
        "id", "customer_id", "name", "detail", "source", "dial_timeout", "try_interval",
        *(f"max_try_count_{n}" for n in range(5)),
    ]  # fmt: skip
    wrong_targets = {
        "tel": "12", "whatsapp": "+49 30", "email": "a b@c", "sip": "@", "agent": NIL,
        "ai": "7", "ai_team": f"{AGENT}\n", "extension": "", "line": "x" * 256,
    }  # fmt: skip
    nothing: Document = {}
    return [
        command("invalid: empty create", "outplan_create", nothing, "rejected"),
        command("invalid: empty update", "outplan_update", nothing, "rejected"),
        command("invalid: empty delete", "outplan_delete", nothing, "rejected"),
        no_create("invalid: all null", **dict.fromkeys(fields)),
        no_create("invalid: all lists", **{name: [] for name in fields}),
        no_create(
            "invalid: many errors", name="", source={"type": "tel", "target": "12", "dial": 1},
            dial_timeout=30, try_interval=500, max_try_count_0=-1, max_try_count_1=1_001, dial=True,
        ),
        no_create("invalid: more errors than listed", **{f"field_{n:02}": n for n in range(40)}),
        no_create("invalid: odd names of fields", **{"a/b~c": 1, "$where": 1, "na\0me": 1, "": 1}),
        no_create("invalid: long name of a field", **{"x" * 101: 1}),
        no_create("invalid: Unicode name of a field", **{"ключ": 1}),
        no_create("invalid: nil UUIDs", id=NIL, customer_id=NIL),
        no_create("invalid: UUIDs", id=f"{{{AGENT}}}", customer_id=f"{AGENT}\n"),
        no_create("invalid: control characters", name="a\0b", source={**TEL, "name": "\x1b[2J"}),
        no_create(
            "invalid: text that steers", name="a\u2028b", detail="a\0b \x7f \x1b[2J",
            source={"type": "sip", "target": "a@b\r\nX: y", "name": "\u202e", "target_name": " "},
        ),
        no_create("invalid: long texts", name="é" * 256),
        no_create("invalid: booleans", dial_timeout=True, max_try_count_0=False, name=True),
        no_create("invalid: texts", dial_timeout="30000", try_interval="", max_try_count_0="5"),
        no_create("invalid: read-only fields", tm_create="2022-04-28 01:50:23.414000", version=1),
        no_create("invalid: source is a text", source="+15559876543"),
        no_create("invalid: source is empty", source={}),
        no_create("invalid: source has null", source={"type": None, "target": None, "name": None}),
        no_create("invalid: type of source", source={"type": "fax", "target": "+15559876543"}),
        raw("invalid: fraction", "30000.5"),
        raw("invalid: 64 bits and one", "18446744073709551616"),
        raw("invalid: minus 64 bits", "-9223372036854775809"),
        raw("invalid: huge float", "1e300"),
        raw("invalid: tiny float", "1e-300"),
        *(
            no_create(f"invalid: target of {kind}", source={"type": kind, "target": target})
            for kind, target in wrong_targets.items()
        ),
        no_update("invalid: update changes nothing"),
        no_update("invalid: update conditions only", customer_id=CUSTOMER, expected_version=1),
        no_update("invalid: update null", customer_id=None, expected_version=None, name=None),
        no_update("invalid: update version", expected_version=0, name="x"),
        no_update("invalid: update version fraction", expected_version=1.5, name="x"),
        no_update("invalid: update source in part", source={"target": "+15559876543"}),
        no_update("invalid: update times", tm_update="2022-04-28 01:50:23.414000", name="x"),
        command(
            "invalid: delete", "outplan_delete",
            {"id": {"$gt": ""}, "force": True, "expected_version": "1"}, "rejected",
        ),
    ]  # fmt: skip

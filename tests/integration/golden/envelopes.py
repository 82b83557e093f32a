"""Commands by what stands around the body: routes, properties and headers."""

from typing import Any

from tests.integration.golden.amqp import Header
from tests.integration.golden.command import (
    REPLIES,
    SENT_AT,
    TRACE,
    USER,
    Command,
    command,
    new,
    outplan,
)


def routes() -> list[Command]:
    id_ = outplan(80)
    return [
        command("queue with type", "<queue>", new(id=id_), target="queue", type="outplan_create"),
        command("queue without type", "<queue>", new(), "rejected", target="queue"),
        command(
            "type over routing key", "outplan_create", {"id": id_, "name": "by type"},
            type="outplan_update",
        ),
        command("type and any routing key", "a.b.c", {"id": id_}, type="outplan_delete"),
        command("empty type", "outplan_create", new(id=outplan(81)), type=""),
        command("type and routing key agree", "outplan_create", new(id=outplan(82)),
                type="outplan_create"),
        command("invalid by type", "elsewhere", b"{}", "rejected", type="outplan_delete"),
    ]  # fmt: skip


def replies() -> list[Command]:
    def right(label: str, number: int, **how: Any) -> Command:
        return command(label, "outplan_create", new(id=outplan(number)), **how)

    def wrong(label: str, **how: Any) -> Command:
        return command(label, "outplan_create", b"{}", "rejected", **how)

    return [
        right("no reply_to", 90, less=["reply_to"]),
        wrong("no reply_to, invalid", less=["reply_to"]),
        right("no correlation_id", 91, less=["correlation_id"]),
        wrong("no correlation_id, invalid", less=["correlation_id"]),
        right("neither reply_to nor correlation_id", 92, less=["reply_to", "correlation_id"]),
        right("empty correlation_id", 93, correlation_id=""),
        command("correlation_id that is no text", "outplan_create", new(id=outplan(94)),
                "rejected", correlation_id=b"\xff\xfe"),
        right("long correlation_id", 95, correlation_id="c" * 255),
        right("Unicode correlation_id", 96, correlation_id="ключ 😀"),
        right("empty reply_to", 97, reply_to=""),
        command("reply_to that is no text", "outplan_create", new(id=outplan(102)),
                "rejected", reply_to=b"\xff"),
        right("reply_to a queue that is not there", 98, reply_to="golden.nobody"),
        wrong("reply_to a queue that is not there, invalid", reply_to="golden.nobody"),
        right("message_id of 255 bytes", 99, message_id="m" * 255),
        right("message_id in Greek", 100, message_id="μ" * 127),
        right("odd message_id", 101, message_id="$where.a\0b\n"),
    ]  # fmt: skip


def properties() -> list[Command]:
    """Set every property, on commands that are accepted and on those that are rejected."""
    every: dict[str, Any] = {
        "content_type": "text/plain; charset=utf-8",
        "content_encoding": "UTF-8",
        "delivery_mode": 1,
        "priority": 3,
        "expiration": "3600000",
        "timestamp": SENT_AT,
        "user_id": USER,
        "app_id": "golden",
        "cluster_id": "east",
    }

    def both(label: str, number: int, **how: Any) -> list[Command]:
        return [
            command(label, "outplan_create", new(id=outplan(number)), **how),
            command(f"{label}, invalid", "outplan_create", b"{}", "rejected", **how),
        ]

    bare = ("delivery_mode", "correlation_id", "reply_to")
    return [
        *both("every property", 110, headers=[("x", "S", "y")], type="outplan_create", **every),
        *both("only a message_id", 111, less=bare),
        *both("empty header table", 112, headers=[]),
        *both("timestamp 0", 113, timestamp=0),
        *both("timestamp in milliseconds", 114, timestamp=SENT_AT * 1_000),
        *both("timestamp past all years", 115, timestamp=2**63 - 1),
        *both("timestamp before all years", 116, timestamp=-(2**63)),
        *both("user_id", 117, user_id=USER),
        *both("priority 255", 118, priority=255),
        *both("encoding identity", 119, content_encoding="identity"),
        *both("empty encoding", 120, content_encoding=""),
        command("no properties at all", "outplan_create", b"{}", "rejected",
                less=[*bare, "message_id"]),
        command("app_id that is no text", "outplan_create", b"{}", "rejected", app_id=b"\xff",
                content_type=b"\xfe", cluster_id=b"\xfd"),
    ]  # fmt: skip


def headers() -> list[Command]:
    parent: Header = ("traceparent", "S", TRACE)
    trace: list[Header] = [parent, ("tracestate", "S", "a=1,b=2")]
    state = f"a={'1' * 252},b={'2' * 255}"
    every_type: list[Header] = [
        ("B", "B", 255), ("u", "u", 65_535), ("i", "i", 2**32 - 1),
        ("true", "t", 1), ("false", "t", 0), ("b", "b", -128), ("s", "s", -32_768),
        ("I", "I", -(2**31)), ("l", "l", -(2**63)), ("f", "f", 0.5), ("d", "d", 0.1),
        ("D", "D", [2, 325]), ("S", "S", "текст"), ("T", "T", SENT_AT), ("V", "V", None),
        ("x", "x", b"\x00\xff"),
        ("A", "A", [("I", 1), ("S", "two"), ("A", []), ("V", None), ("F", [("n", "t", 1)])]),
        ("F", "F", [("a", "A", [("I", 1)]), ("b", "F", [("c", "l", 2**40)]), ("d", "V", None)]),
    ]  # fmt: skip
    names: list[Header] = [
        ("", "S", "no name"), ("ключ", "S", "значение"), ("n" * 255, "S", ""),
        ("outplan_id", "S", outplan(40)), ("customer_id", "I", 7), ("version", "S", "mine"),
    ]  # fmt: skip
    ours: list[Header] = [
        ("before", "S", "kept"), ("x-problem-code", "S", "mine"), ("x-problem", "I", 1),
        ("x-rejected-at", "T", SENT_AT), ("x-original-exchange", "S", "mine"), ("n", "V", None),
        ("x-original-routing-key", "S", "mine"), ("x-original-user-id", "S", "mine"),
        ("x-original-cc", "S", "mine"), ("x-headers-dropped", "t", 0), ("after", "S", "kept"),
    ]  # fmt: skip
    odd_trace: list[Header] = [("traceparent", "I", 7), ("tracestate", "F", [("a", "V", None)])]

    def both(label: str, number: int, headers: list[Header], **how: Any) -> list[Command]:
        return [
            command(label, "outplan_create", new(id=outplan(number)), headers=headers, **how),
            command(f"{label}, invalid", "outplan_create", b"{}", "rejected", headers=headers,
                    **how),
        ]  # fmt: skip

    return [
        *both("trace context", 130, [*trace, ("other", "S", "stays here")]),
        *both("trace context of other types", 131, odd_trace),
        *both("tracestate of 512 bytes", 132, [("tracestate", "S", state), parent]),
        *both("tracestate of 513 bytes", 133, [("tracestate", "S", f"{state},"), parent]),
        *both("tracestate in Greek", 134, [("tracestate", "S", "a=μ"), parent]),
        *both("tracestate alone", 145, [("tracestate", "S", "a=1")]),
        *both("trace context of bytes", 135, [("traceparent", "x", TRACE.encode())]),
        *both("empty trace context", 136, [("traceparent", "S", ""), ("tracestate", "S", "")]),
        *both("headers of every type", 137, every_type),
        *both("headers of odd names", 138, names),
        *both("headers of the service's names", 139, ours),
        *both("delivery count of the sender", 143, [("x-delivery-count", "l", 9), ("a", "S", "b")]),
        *both("CC to the replies", 140, [("CC", "A", [("S", REPLIES)]), ("a", "S", "b")],
              target="queue", type="outplan_create", strays=1),
        *both("BCC to the replies", 141, [("BCC", "A", [("S", REPLIES)]), ("a", "S", "b")],
              target="queue", type="outplan_create", strays=1),
        *both("CC to nobody", 142, [("CC", "A", [("S", "golden.nobody")])]),
        # RabbitMQ 4 drops the second one: a copy of the command would tell which broker it was.
        command("a header twice", "outplan_create", new(id=outplan(144)),
                headers=[parent, ("tracestate", "S", "a=1"), ("tracestate", "S", "b=2")]),
        command("trace context on an unchanged update", "outplan_update",
                {"id": outplan(130), "detail": ""}, "unchanged", headers=trace),
        command("trace context on an update", "outplan_update",
                {"id": outplan(130), "detail": "traced"}, headers=trace),
        command("trace context on a delete", "outplan_delete", {"id": outplan(130)},
                headers=trace),
        command("trace context on invalid JSON", "outplan_create", b"[", "rejected",
                headers=trace),
    ]  # fmt: skip

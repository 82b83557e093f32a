"""Hostile messages in process: a bounded run, the patterns' worst texts, and memory."""

import gc
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest

from outplan.contract.amqp import Delivery, Publication
from outplan.contract.fields import MAX_BODY_BYTES, TARGET_PATTERNS
from outplan.contract.messages import PROBLEM_CODES, ProblemError
from outplan.domain import batch, codec, decider
from tests.faults.fuzz import in_process as hostile
from tests.faults.fuzz.bodies import PATHOLOGICAL
from tests.faults.fuzz.fuzz_runner import Court
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.properties import MAX_TABLE, content_header
from tests.support.samples import create_body

COUNT: Final = 10_000
# Of one message; the headers' names and lengths take some of the 128 KiB.
LENGTH: Final = MAX_BODY_BYTES - 1_000
# A busy machine is no reason to fail: for sixteen times the length it may take 64 times as long.
# What is quadratic takes 256 times as long.
LINEAR: Final = 64
NOISE_SECONDS: Final = 0.002


@pytest.mark.parametrize("seed", [1, random.randrange(10**9)], ids=["fixed", "random"])
def test_every_message_has_exactly_one_outcome_and_breaks_nothing(seed: int) -> None:
    print("seed", seed)

    report = hostile.run(COUNT, seed)

    assert report.faults == []
    assert report.count == COUNT
    known = {"accepted", "unchanged", "duplicate", *PROBLEM_CODES} - {"delivery_limit"}
    assert report.outcomes.keys() == known


def test_the_same_seed_makes_the_same_messages() -> None:
    one, other = Mutator(7), Mutator(7)
    assert [one.next() for _ in range(500)] == [other.next() for _ in range(500)]


def breaks(*_: Any, **__: Any) -> Any:
    raise IndexError("planted")


def accepts_twice(outcome: codec.Outcome, *rest: Any) -> list[Publication]:
    return codec.publications(outcome, *rest) * 2


def lenient(delivery: Delivery) -> codec.ParsedCommand | codec.Outcome:
    body = delivery.body.replace(b"NaN", b"30000").replace(b"30,", b"30000,")
    return codec.parse(replace(delivery, body=body))


def forgets(*_: Any) -> decider.Unchanged:
    return decider.Unchanged()


@pytest.mark.parametrize(
    ("module", "name", "planted"),
    [
        ("tests.faults.fuzz.fuzz_runner", "parse", breaks),
        ("tests.faults.fuzz.fuzz_runner", "parse", lenient),
        ("tests.faults.fuzz.fuzz_runner", "publications", accepts_twice),
        ("tests.faults.fuzz.fuzz_runner", "write_publication", lambda *_: b""),
        (batch.__name__, "decide", forgets),
        (codec.__name__, "_trace_context", lambda _: {"x": "y" * 140_000}),
    ],
    ids=["an-exception", "lenient-json", "sent-twice", "no-frames", "no-decision", "a-large-frame"],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, planted: Callable[..., Any]
) -> None:
    monkeypatch.setattr(f"{module}.{name}", planted)

    assert hostile.run(3_000, 1).faults


# --- time --------------------------------------------------------------------------------------

TARGETS: Final = [*TARGET_PATTERNS, "agent"]


def seconds(mutant: Mutant) -> float:
    court = Court()
    return min(court.time(mutant) for _ in range(3))


def a_mutant(body: bytes, table: list[tuple[bytes, bytes]] | None = None) -> Mutant:
    properties: dict[str, bytes | int] = {"message_id": b"m", "reply_to": b"r"}
    header = content_header(properties, table, len(body))
    return Mutant("worst", "outplan_create", header, body)


def with_field(field: str, kind: str, text: str) -> bytes:
    source = {"type": kind, "target": "1", **({field: text} if field == "target" else {})}
    fields = {"source": source} if field == "target" else {field: text}
    return orjson.dumps(create_body(**fields))


CASES = [("target", kind) for kind in TARGETS] + [
    (field, "line") for field in ("id", "customer_id", "name", "detail")
]


@pytest.mark.parametrize(("field", "kind"), CASES, ids=[f"{f}-{k}" for f, k in CASES])
@pytest.mark.parametrize("n", range(len(PATHOLOGICAL)))
def test_no_text_makes_a_pattern_slow(field: str, kind: str, n: int) -> None:
    """The time grows no faster than the text, up to all that a body may hold."""
    short, long = (
        seconds(a_mutant(with_field(field, kind, PATHOLOGICAL[n](length))))
        for length in (LENGTH // 16, LENGTH)
    )
    assert long < hostile.WORST
    assert long < LINEAR * short + NOISE_SECONDS


@pytest.mark.parametrize("n", range(len(PATHOLOGICAL)))
def test_no_pointer_is_slow_to_check(n: int) -> None:
    def spent(length: int) -> float:
        text, since = PATHOLOGICAL[n](length), time.thread_time()
        with suppress(ValueError):
            ProblemError(pointer=text, detail="")
        return time.thread_time() - since

    short, long = (min(spent(length) for _ in range(3)) for length in (LENGTH // 16, LENGTH))
    assert long < LINEAR * short + NOISE_SECONDS


def sized(kind: bytes, inner: bytes) -> bytes:
    return kind + struct.pack(">I", len(inner)) + inner


def nested(levels: int) -> bytes:
    heads = (b"A" + struct.pack(">I", 5 * n) for n in reversed(range(levels)))
    return b"".join(heads)


HEAVY: Final[dict[str, list[tuple[bytes, bytes]]]] = {
    "a-wide-list": [(b"traceparent", sized(b"A", b"V" * MAX_TABLE))],
    "a-wide-table": [(b"traceparent", sized(b"F", b"\0V" * (MAX_TABLE // 2)))],
    "a-deep-list": [(b"traceparent", nested(MAX_TABLE // 5))],
    "two-lists": [
        (name, sized(b"A", b"V" * (MAX_TABLE // 2))) for name in (b"traceparent", b"tracestate")
    ],
    "many-headers": [*([(b"", b"V")] * (MAX_TABLE // 2 - 50)), (b"traceparent", b"V")],
    "a-long-text": [(b"tracestate", sized(b"S", b"x" * MAX_TABLE))],
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("body", [orjson.dumps(create_body()), b"{}"], ids=["accepted", "refused"])
def test_headers_that_fill_a_frame_are_not_slow(name: str, body: bytes) -> None:
    assert seconds(a_mutant(body, HEAVY[name])) < hostile.WORST


# --- memory ------------------------------------------------------------------------------------


def test_no_memory_is_kept() -> None:
    mutator, court = Mutator("memory"), Court()
    batches = [[mutator.next() for _ in range(20)] for _ in range(60)]

    def go(times: int) -> int:
        for _ in range(times):
            for each in batches:
                court.try_all(each)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, last = go(2), go(2)
    finally:
        tracemalloc.stop()
    assert last - first < 2**18  # less than 110 bytes a message

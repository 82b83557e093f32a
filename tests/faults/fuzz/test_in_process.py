"""Check a fuzz run in process, the slowest texts for each pattern, and memory."""

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
from tests.faults.fuzz import in_process
from tests.faults.fuzz.bodies import PATHOLOGICAL
from tests.faults.fuzz.fuzz_runner import FuzzRunner
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.properties import MAX_TABLE
from tests.support.raw_message import encode_content_header
from tests.support.samples import create_body

COUNT: Final = 10_000
# The longest text in a body: names and punctuation take the rest.
LENGTH: Final = MAX_BODY_BYTES - 1_000
# Allow 64 times the time for 16 times the length, because the machine may be busy. Quadratic code
# takes 256 times as long.
MOST_RATIO: Final = 64
NOISE_SECONDS: Final = 0.002


@pytest.mark.parametrize("seed", [1, random.randrange(10**9)], ids=["fixed", "random"])
def test_every_message_has_exactly_one_outcome_and_raises_nothing(seed: int) -> None:
    print("seed", seed)

    report = in_process.run(COUNT, seed)

    assert report.failures == []
    assert report.count == COUNT
    known = {"accepted", "unchanged", "duplicate", *PROBLEM_CODES} - {"delivery_limit"}
    assert report.outcomes.keys() == known


def test_the_same_seed_makes_the_same_messages() -> None:
    one, other = Mutator(7), Mutator(7)
    assert [one.next() for _ in range(500)] == [other.next() for _ in range(500)]


def raise_index_error(*_: Any, **__: Any) -> Any:
    raise IndexError("planted")


def publish_twice(outcome: codec.Outcome, *rest: Any) -> list[Publication]:
    return codec.build_publications(outcome, *rest) * 2


def parse_leniently(delivery: Delivery) -> codec.ParsedCommand | codec.Outcome:
    body = delivery.body.replace(b"NaN", b"30000").replace(b"30,", b"30000,")
    return codec.parse(replace(delivery, body=body))


def decide_unchanged(*_: Any) -> decider.Unchanged:
    return decider.Unchanged()


@pytest.mark.parametrize(
    ("module", "name", "planted"),
    [
        ("tests.faults.fuzz.fuzz_runner", "parse", raise_index_error),
        ("tests.faults.fuzz.fuzz_runner", "parse", parse_leniently),
        ("tests.faults.fuzz.fuzz_runner", "build_publications", publish_twice),
        ("tests.faults.fuzz.fuzz_runner", "write_publication", lambda *_: b""),
        (batch.__name__, "decide", decide_unchanged),
        (codec.__name__, "_trace_context", lambda _: {"x": "y" * 140_000}),
        (codec.__name__, "_trace_context", lambda _: {"tracestate": "\udcff"}),
        (codec.__name__, "_trace_context", lambda _: {"\udcff": "a=1"}),
    ],
    ids=[
        "exception",
        "lenient-json",
        "sent-twice",
        "no-frames",
        "no-decision",
        "large-frame",
        "header-not-UTF-8",
        "header-name-not-UTF-8",
    ],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, planted: Callable[..., Any]
) -> None:
    monkeypatch.setattr(f"{module}.{name}", planted)

    assert in_process.run(3_000, 1).failures


# --- time --------------------------------------------------------------------------------------

TARGETS: Final = [*TARGET_PATTERNS, "agent"]


def measure_seconds(mutant: Mutant) -> float:
    runner = FuzzRunner()
    return min(runner.measure_cpu(mutant) for _ in range(3))


def make_mutant(body: bytes, table: list[tuple[bytes, bytes]] | None = None) -> Mutant:
    properties: dict[str, bytes | int] = {"message_id": b"m", "reply_to": b"r"}
    header = encode_content_header(properties, table, len(body))
    return Mutant("outplan_create", header, body, "worst case")


def with_field(field: str, kind: str, text: str) -> bytes:
    source = {"type": kind, "target": "1", **({field: text} if field == "target" else {})}
    fields = {"source": source} if field == "target" else {field: text}
    return orjson.dumps(create_body(**fields))


CASES = [("target", kind) for kind in TARGETS] + [
    (field, "line") for field in ("id", "customer_id", "name", "detail")
]


@pytest.mark.parametrize(("field", "kind"), CASES, ids=[f"{f}-{k}" for f, k in CASES])
@pytest.mark.parametrize("n", range(len(PATHOLOGICAL)))
def test_no_text_makes_a_regular_expression_slow(field: str, kind: str, n: int) -> None:
    """Require linear time, up to the body limit."""
    short, long = (
        measure_seconds(make_mutant(with_field(field, kind, PATHOLOGICAL[n](length))))
        for length in (LENGTH // 16, LENGTH)
    )
    assert long < in_process.MOST_CPU_SECONDS
    assert long < MOST_RATIO * short + NOISE_SECONDS


@pytest.mark.parametrize("n", range(len(PATHOLOGICAL)))
def test_no_json_pointer_is_slow_to_validate(n: int) -> None:
    def time_pointer(length: int) -> float:
        text, since = PATHOLOGICAL[n](length), time.thread_time()
        with suppress(ValueError):
            ProblemError(pointer=text, detail="")
        return time.thread_time() - since

    short, long = (min(time_pointer(length) for _ in range(3)) for length in (LENGTH // 16, LENGTH))
    assert long < MOST_RATIO * short + NOISE_SECONDS


def with_length(kind: bytes, inner: bytes) -> bytes:
    return kind + struct.pack(">I", len(inner)) + inner


def nest_arrays(levels: int) -> bytes:
    heads = (b"A" + struct.pack(">I", 5 * n) for n in reversed(range(levels)))
    return b"".join(heads)


HEAVY: Final[dict[str, list[tuple[bytes, bytes]]]] = {
    "a-wide-list": [(b"traceparent", with_length(b"A", b"V" * MAX_TABLE))],
    "a-wide-table": [(b"traceparent", with_length(b"F", b"\0V" * (MAX_TABLE // 2)))],
    "a-deep-list": [(b"traceparent", nest_arrays(MAX_TABLE // 5))],
    "two-lists": [
        (name, with_length(b"A", b"V" * (MAX_TABLE // 2)))
        for name in (b"traceparent", b"tracestate")
    ],
    "many-headers": [*([(b"", b"V")] * (MAX_TABLE // 2 - 50)), (b"traceparent", b"V")],
    "a-long-text": [(b"tracestate", with_length(b"S", b"x" * MAX_TABLE))],
}


@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("body", [orjson.dumps(create_body()), b"{}"], ids=["accepted", "refused"])
def test_headers_of_a_whole_frame_are_not_slow(name: str, body: bytes) -> None:
    assert measure_seconds(make_mutant(body, HEAVY[name])) < in_process.MOST_CPU_SECONDS


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    mutator, runner = Mutator("memory"), FuzzRunner()
    batches = [[mutator.next() for _ in range(20)] for _ in range(60)]

    def run_batches(times: int) -> int:
        for _ in range(times):
            for each in batches:
                runner.run_batch(each)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, last = run_batches(2), run_batches(2)
    finally:
        tracemalloc.stop()
    assert last - first < 2**18  # Less than 110 bytes a message.

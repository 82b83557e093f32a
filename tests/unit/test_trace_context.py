"""Check trace context by the forms of the W3C recommendation."""

from typing import Any

import pytest

from outplan.contract.trace_context import check_trace_context

IDS = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
PARENT = f"00-{IDS}-01"


@pytest.mark.parametrize(
    "parent", [PARENT, f"00-{IDS}-ff", f"cc-{IDS}-01", f"cc-{IDS}-01-", f"01-{IDS}-00-what-else"]
)
def test_a_valid_traceparent_is_kept(parent: str) -> None:
    assert check_trace_context(parent, None) == {"traceparent": parent}


@pytest.mark.parametrize(
    "parent",
    [
        None, 7, b"00", "", "00", PARENT.upper(), f" {PARENT}", f"{PARENT}\n", f"{PARENT}-",
        f"{PARENT}-more", f"ff-{IDS}-01", f"0-{IDS}-01", f"00-{IDS}", f"00-{IDS}-1",
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{IDS[:33]}{'0' * 16}-01",
        f"01-{IDS}-01-\xff", f"01-{IDS}-01-a b", f"01-{IDS}-01-" + "x" * 500, f"00-{IDS}-0\udcff",
    ],
)  # fmt: skip
def test_without_a_valid_traceparent_nothing_is_kept(parent: Any) -> None:
    assert check_trace_context(parent, "a=1") == {}


@pytest.mark.parametrize(
    "state",
    ["a=1", "a=1,b=2", "a=1 , \tb=2,", "1tenant@vendor=x y~!", "a_-*/z=" + "v" * 256,
     "k" * 256 + "=" + "v" * 255, ",".join(f"k{n}=v" for n in range(32))],
)  # fmt: skip
def test_a_valid_tracestate_is_kept(state: str) -> None:
    kept = check_trace_context(PARENT, state)
    assert kept == {"traceparent": PARENT, "tracestate": state}


@pytest.mark.parametrize(
    "state",
    [None, 7, ["a=1"], "", ",", "a", "a=", "A=1", "=1", "a=1=2", "a=1,a=2", "a=ü", "a=\udcff",
     "a=1\n", "a=\0", "a =1", "_a=1", "k" * 257 + "=v", "a=" + "v" * 257, "\N{NO-BREAK SPACE}a=1",
     ",".join(f"k{n}=v" for n in range(33)), "a=1," * 129],
)  # fmt: skip
def test_an_invalid_tracestate_is_left_out(state: Any) -> None:
    assert check_trace_context(PARENT, state) == {"traceparent": PARENT}

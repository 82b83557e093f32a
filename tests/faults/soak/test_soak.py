"""Check the comparison of soak samples on made-up runs, and the plot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.soak.samples import Sample, SampleFile, compare, comparison_windows

RATE = 100.0
STEADY = Sample(
    at=0, worker_memory=90, worker_files=23, worker_connections=2, broker_memory=None,
    store_memory=400, loader_memory=100, commands_ready=0, rejected_ready=0, events_ready=0,
    in_flight=20, sent=0, replied=0, p50=5, p99=9,
)  # fmt: skip


def make_run(changed: Callable[[int], dict[str, float]], seconds: int = 1_800) -> list[Sample]:
    steady = [replace(STEADY, at=n, sent=100 * n, replied=100 * n) for n in range(seconds)]
    return [replace(s, **changed(n)) for n, s in enumerate(steady)]  # type: ignore[arg-type]


def failed_measures(samples: list[Sample]) -> set[str]:
    return {measure.name for measure in compare(samples, RATE) if not measure.has_passed}


def test_a_steady_run_passes() -> None:
    assert failed_measures(make_run(lambda _: {})) == set()


def test_memory_gained_in_the_first_five_minutes_is_no_growth() -> None:
    assert failed_measures(make_run(lambda n: {"worker_memory": 60 + min(n, 300) / 10})) == set()


def test_a_short_peak_is_no_growth() -> None:
    assert (
        failed_measures(make_run(lambda n: {"worker_memory": 200 if n == 1_799 else 90})) == set()
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda n: {"worker_memory": 90 + n / 200}, "worker's memory, MiB"),
        (lambda n: {"worker_files": 23 + n // 600}, "worker's open files"),
        (lambda n: {"worker_connections": 2 + n // 1_000}, "worker's AMQP connections"),
        (lambda n: {"in_flight": 20 + n // 4}, "commands in flight"),
        (lambda n: {"in_flight": 1_001 if n == 900 else 20}, "most commands in flight"),
        (lambda n: {"commands_ready": n // 4}, "commands ready"),
        (lambda n: {"events_ready": n // 4}, "events ready"),
        (lambda n: {"rejected_ready": n // 4}, "rejected copies ready"),
        (lambda n: {"replied": 94 * n}, "commands answered a second"),
    ],
)
def test_growth_and_backlog_fail(changed: Callable[[int], dict[str, float]], expected: str) -> None:
    assert failed_measures(make_run(changed)) == {expected}


def test_a_short_run_has_shorter_windows() -> None:
    assert comparison_windows(1_800) == (300, 60)
    assert comparison_windows(120) == (30, 15)


def test_each_sample_is_written_at_once(tmp_path: Path) -> None:
    file = SampleFile(tmp_path / "soak.csv")
    try:
        file.add(STEADY)
        written = (tmp_path / "soak.csv").read_text().splitlines()
    finally:
        file.close()
    assert written[0].startswith("at,worker_memory")
    assert written[1].startswith("0,90,23,2,,400")


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    plot = pytest.importorskip("tests.faults.soak.plot").plot

    plot(make_run(lambda _: {}, 120), RATE, tmp_path / "soak.png")

    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")

"""Run a great many hostile messages through the service's code, in process.

``python -m tests.faults.fuzz.in_process`` decodes each message's content header and body,
validates and decides the command, and encodes the resulting messages as frames. It reads each
message, its rejected copy, and as many hostile events as subscribers, clients and operators do. It
needs neither a store nor a broker.
"""

import asyncio
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console

from tests.faults.fuzz.fuzz_runner import FuzzRunner
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.readers import Readers
from tests.faults.fuzz.report import Report, build_tables, render_summary
from tests.support.process_state import resident_bytes

# The limit for the slowest message: a batch of 500 delays all others by 500 times as much.
MOST_CPU_SECONDS: Final = 0.1
# The limit for the resident memory that a process gains after the first tenth of its messages.
MOST_GROWTH_BYTES: Final = 16 * 2**20
_MOST_FAILURES: Final = 20
_LARGEST_BATCH: Final = 32


def run(count: int, seed: int | str) -> Report:
    """Run ``count`` messages; stop at the 20th failure."""
    rng, mutator, runner = random.Random(f"batches {seed}"), Mutator(seed), FuzzRunner()
    report, since, early = runner.report, time.monotonic(), 0
    readers = Readers(report)
    while report.count < count and len(report.failures) < _MOST_FAILURES:
        size = min(rng.randint(1, _LARGEST_BATCH), count - report.count)
        mutants = [mutator.next() for _ in range(size)]
        runner.run_batch(mutants)
        events = [mutator.next_event() for _ in range(size)]
        asyncio.run(readers.read_batch(events + mutants, runner.copies))
        if not early and report.count >= count // 10:
            early = resident_bytes(os.getpid())
    report.memory = [(early, resident_bytes(os.getpid()))]
    report.seconds = time.monotonic() - since
    return report


def repeat_slowest(report: Report) -> list[tuple[float, Mutant]]:
    """Time the slowest messages again, five times each, and return the medians, slowest first.

    A busy machine makes single timings meaningless.
    """
    runner = FuzzRunner()
    repeated = [
        (median(runner.measure_cpu(mutant) for _ in range(5)), mutant)
        for _, _, mutant in report.times.slowest
    ]
    return sorted(repeated, key=lambda item: -item[0])


def _run_in_parallel(count: int, seed: int, processes: int) -> Report:
    share, rest = divmod(count, processes)
    shares = [share + (n < rest) for n in range(processes)]
    seeds = [f"{seed}.{n}" for n in range(processes)]
    report = Report()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for part in pool.map(run, shares, seeds):
            report.merge(part)
    return report


def main(
    count: Annotated[int, typer.Option(min=1, help="Number of messages.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = min(
        2, os.cpu_count() or 1
    ),
) -> None:
    """Run hostile messages in process; exit with code 1 on a failure, a slow message or growth."""
    print(f"seed {seed}", flush=True)
    report = _run_in_parallel(count, seed, processes)
    slowest = repeat_slowest(report)
    console = Console()
    for table in build_tables(report, slowest):
        console.print(table)
    for line in render_summary(report, slowest[0][0]):
        print(line)
    is_fast = slowest[0][0] < MOST_CPU_SECONDS
    has_passed = not report.failures and is_fast and report.growth < MOST_GROWTH_BYTES
    print("passed" if has_passed else "FAILED")
    sys.exit(0 if has_passed else 1)


if __name__ == "__main__":
    typer.run(main)

"""``python -m tests.faults.fuzz.in_process``: a great many hostile messages, in process.

Each goes the way of a command: content header and body are decoded, the command validated and
decided, and the messages that it causes written as frames. No store and no broker are needed.
"""

import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Final

import typer
from rich.console import Console

from tests.faults.fuzz.fuzz_runner import Court
from tests.faults.fuzz.mutants import Mutant, Mutator
from tests.faults.fuzz.report import Report, summary, tables, typical
from tests.support.process_state import resident

# CPU seconds that the worst message may take; a batch of 500 holds all the others up so long.
WORST: Final = 0.1
# What the resident memory of a process may gain after the first tenth of its messages.
GROWTH: Final = 16 * 2**20
_MOST_FAULTS: Final = 20
_BATCH: Final = 32


def run(count: int, seed: int | str) -> Report:
    """Try ``count`` messages; stops at the 20th fault."""
    luck, mutator, court = random.Random(f"batches {seed}"), Mutator(seed), Court()
    report, since, early = court.report, time.monotonic(), 0
    while report.count < count and len(report.faults) < _MOST_FAULTS:
        size = min(luck.randint(1, _BATCH), count - report.count)
        court.try_all([mutator.next() for _ in range(size)])
        if not early and report.count >= count // 10:
            early = resident(os.getpid())
    report.memory = [(early, resident(os.getpid()))]
    report.seconds = time.monotonic() - since
    return report


def remeasured(report: Report) -> list[tuple[float, Mutant]]:
    """The slowest messages timed again, each five times: what a busy machine made slow is not."""
    court = Court()
    found = [
        (typical([court.time(mutant) for _ in range(5)]), mutant)
        for _, _, mutant in report.times.slowest
    ]
    return sorted(found, key=lambda item: -item[0])


def _together(count: int, seed: int, processes: int) -> Report:
    share, rest = divmod(count, processes)
    shares = [share + (n < rest) for n in range(processes)]
    seeds = [f"{seed}.{n}" for n in range(processes)]
    report = Report()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for part in pool.map(run, shares, seeds):
            report.merge(part)
    return report


def main(
    count: Annotated[int, typer.Option(min=1, help="How many messages.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same messages.")] = 1,
    processes: Annotated[int, typer.Option(min=1)] = min(2, os.cpu_count() or 1),
) -> None:
    """Try hostile messages and say what became of them; exit 1 where anything is wrong."""
    print(f"seed {seed}", flush=True)
    report = _together(count, seed, processes)
    slowest = remeasured(report)
    console = Console()
    for table in tables(report, slowest):
        console.print(table)
    for line in summary(report, slowest[0][0]):
        print(line)
    sound = not report.faults and slowest[0][0] < WORST and report.growth < GROWTH
    print("sound" if sound else "NOT SOUND")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(main)

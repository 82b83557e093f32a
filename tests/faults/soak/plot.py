"""Plot a soak's samples."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from tests.faults.soak.samples import Sample, comparison_windows

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Line = tuple[str, Callable[[Sample], float | None]]

_PANELS: Final[tuple[tuple[str, bool, tuple[Line, ...]], ...]] = (
    ("worker's memory, MiB", False, (("resident", lambda s: s.worker_memory),)),
    (
        "other memory, MiB",
        False,
        (
            ("RabbitMQ", lambda s: s.broker_memory),
            ("MongoDB", lambda s: s.store_memory),
            ("load generator", lambda s: s.loader_memory),
        ),
    ),
    (
        "worker has open",
        False,
        (
            ("files", lambda s: s.worker_files),
            ("AMQP connections", lambda s: s.worker_connections),
        ),
    ),
    (
        "messages waiting",
        False,
        (
            ("commands in flight", lambda s: s.in_flight),
            ("commands ready", lambda s: s.commands_ready),
            ("events ready", lambda s: s.events_ready),
            ("rejected ready", lambda s: s.rejected_ready),
        ),
    ),
    ("publish to event, ms", True, (("p50", lambda s: s.p50), ("p99", lambda s: s.p99))),
)
_COLOURS: Final = ("#1f6fb4", "#d1642a", "#3a8f4d", "#8a4fa3")


def plot(samples: Sequence[Sample], rate: float, path: Path) -> None:
    """Draw memory, files, queues, latency and rate over time, as a PNG file."""
    figure, panels = plt.subplots(
        len(_PANELS) + 1, 1, sharex=True, figsize=(11, 15), layout="constrained"
    )
    minutes = [sample.at / 60 for sample in samples]
    for axes, (label, logarithmic, lines) in zip(panels, _PANELS, strict=False):
        _draw_panel(axes, minutes, samples, label, lines)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0, top=1.15 * axes.get_ylim()[1])
    _draw_rates(panels[-1], minutes, samples, rate)
    warm, length = comparison_windows(samples[-1].at)
    for axes in panels:
        for start in (warm, samples[-1].at - length):
            axes.axvspan(start / 60, (start + length) / 60, color="#000000", alpha=0.06, lw=0)
    panels[-1].set_xlabel("minutes; grey: the compared windows")
    figure.suptitle(f"A worker under {rate:.0f} commands a second", fontsize=14)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(
    axes: Any, minutes: list[float], samples: Sequence[Sample], label: str, lines: tuple[Line, ...]
) -> None:
    for (name, value), colour in zip(lines, _COLOURS, strict=False):
        values = [number if (number := value(s)) is not None else float("nan") for s in samples]
        axes.plot(minutes, values, label=name, color=colour, lw=1.3)
    _format_axes(axes, label)


def _draw_rates(axes: Any, minutes: list[float], samples: Sequence[Sample], rate: float) -> None:
    pairs = list(pairwise(samples))
    done = [(b.replied - a.replied) / (b.at - a.at) for a, b in pairs]
    axes.plot(minutes[1:], done, label="answered", color=_COLOURS[0], lw=1.3)
    axes.axhline(rate, label="requested", color=_COLOURS[1], lw=1, ls="--")
    axes.set_ylim(bottom=0, top=1.3 * max([rate, *done]))
    _format_axes(axes, "commands a second")


def _format_axes(axes: Any, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", ncols=4, fontsize=9, framealpha=0.9)
    axes.margins(x=0)

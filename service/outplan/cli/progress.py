"""Show the progress of an import on a terminal's standard error."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from outplan.cli.output import forward_client_log, make_console, report_obstacles
from outplan.cli.stats import ImportStats


@contextmanager
def progress_bar(stats: ImportStats, size: int | None) -> Iterator[None]:
    """Show a bar for ``size`` bytes until the block ends; None shows activity only."""
    if not sys.stderr.isatty():
        with report_obstacles():
            yield
        return
    console = make_console(stderr=True)
    with (
        _ProgressBar(stats, size, console),
        forward_client_log(lambda text: console.print(Text(text))),
    ):
        yield


class _ProgressBar(Progress):
    def __init__(self, stats: ImportStats, size: int | None, console: Console) -> None:
        self._stats = stats
        remaining = (TimeRemainingColumn(elapsed_when_finished=True),) if size else ()
        super().__init__(BarColumn(), _CountsColumn(stats), *remaining, console=console)
        self.add_task("import", total=size)

    def get_renderables(self) -> Iterable[RenderableType]:
        # Updating when rich draws is cheaper than with each outcome.
        for task in self.task_ids:
            self.update(task, completed=self._stats.last_done.end)
        return super().get_renderables()


class _CountsColumn(ProgressColumn):
    def __init__(self, stats: ImportStats) -> None:
        super().__init__()
        self._stats = stats

    def render(self, task: Task) -> Text:
        share = f"{task.percentage:.0f}%  " if task.total else ""
        counts = self._stats.counts
        bad = "".join(f"  {counts[b]:,} {b}" for b in ("rejected", "unknown") if counts[b])
        return Text(f"{share}{self._stats.lines:,} lines  {self._stats.rate:,.0f}/s{bad}")

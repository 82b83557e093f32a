"""The progress of an import, drawn on a terminal's standard error and nowhere else."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from outplan.cli.importing.tally import Tally
from outplan.cli.terminal import a_console, notices


@contextmanager
def gauge(tally: Tally, size: int | None) -> Iterator[None]:
    """Draw a bar for ``size`` bytes (it wanders to and fro for None) until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    console = a_console(stderr=True)
    with _Bar(tally, size, console), notices(lambda text: console.print(Text(text))):
        yield


class _Bar(Progress):
    def __init__(self, tally: Tally, size: int | None, console: Console) -> None:
        self._tally = tally
        remaining = (TimeRemainingColumn(elapsed_when_finished=True),) if size else ()
        super().__init__(BarColumn(), _Counts(tally), *remaining, console=console)
        self.add_task("import", total=size)

    def get_renderables(self) -> Iterable[RenderableType]:
        # It is called for each picture, which is seldomer than there are verdicts.
        for task in self.task_ids:
            self.update(task, completed=self._tally.reached.end)
        return super().get_renderables()


class _Counts(ProgressColumn):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        share = f"{task.percentage:.0f}%  " if task.total else ""
        counts = self._tally.counts
        bad = "".join(f"  {counts[b]:,} {b}" for b in ("rejected", "unknown") if counts[b])
        return Text(f"{share}{self._tally.lines:,} lines  {self._tally.rate:,.0f}/s{bad}")

"""Show or change the number of partitions: ``outplan partitions``."""

import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from outplan.cli.errors import ExitCode, fail, handle_errors, run_async
from outplan.cli.output import make_table, print_line, print_note, print_table
from outplan.domain.layout import Layout, describe_partitions
from outplan.errors import Fatal
from outplan.operations.partitions import LayoutView, Progress, open_change
from outplan.settings import Settings, load_settings

T = TypeVar("T")


def show_partitions(*, as_json: bool) -> None:
    """Print the layout in force, the live workers and their queues."""
    view = _run(_read_view(_load()))
    if as_json:
        typer.echo(json.dumps(_to_json(view)))
        return
    print_line(_describe(view.layout))
    table = make_table()
    for worker, share in view.shares.items():
        table.add_row(worker, ", ".join(share.own) or "stands by")
    print_table(table)
    if not view.shares:
        print_line("no worker is alive")


def change_partitions(partitions: int | None, *, abort: bool, settle: float, retire: float) -> None:
    """Change the number, or lead a change back, and report progress to standard error."""
    settings = _load()
    try:
        layout = _run(_change(settings, None if abort else partitions, settle, retire))
    except typer.Exit as error:
        if error.exit_code == ExitCode.INTERRUPTED:
            print_note("outplan: a change that has begun waits; run the same command to go on")
        raise
    print_line(_describe(layout))


def _load() -> Settings:
    try:
        return load_settings()
    except Fatal as error:
        fail(error, error.exit_code)


async def _read_view(settings: Settings) -> LayoutView:
    async with open_change(settings, _report, settle=0, retire=0) as change:
        return await change.read_view()


async def _change(
    settings: Settings, partitions: int | None, settle: float, retire: float
) -> Layout:
    async with open_change(settings, _report, settle=settle, retire=retire) as change:
        return await (change.abort() if partitions is None else change.run(partitions))


def _report(progress: Progress | str) -> None:
    if isinstance(progress, str):
        print_note(progress)
        return
    layout = progress.layout
    parts = [f"{layout.phase}: {progress.text}"]
    if progress.messages:
        parts.append(f"{progress.messages:,} messages")
    if progress.seconds is not None:
        parts.append(f"about {progress.seconds:,.0f} s")
    print_note(", ".join(parts))


def _describe(layout: Layout) -> str:
    number = describe_partitions(layout.partitions)
    if layout.is_steady:
        return number
    return (
        f"{number}, in phase {layout.phase} of a change from {layout.former}; go on with "
        f"outplan partitions {layout.partitions}"
    )


def _to_json(view: LayoutView) -> dict[str, object]:
    layout = view.layout
    return {
        "partitions": layout.partitions,
        "phase": layout.phase,
        "former": layout.former,
        "generation": layout.generation,
        "workers": {worker: list(share.own) for worker, share in view.shares.items()},
    }


def _run(work: Coroutine[Any, Any, T]) -> T:
    with handle_errors():
        return run_async(work)

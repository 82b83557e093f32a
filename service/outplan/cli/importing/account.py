"""An import from the first look at its files to the account of how it ended."""

import os
from pathlib import Path
from typing import Final

import orjson
import typer

from outplan.cli.importing.command import Import
from outplan.cli.importing.gauge import gauge
from outplan.cli.importing.intake import Intake, Silence
from outplan.cli.importing.lines import Source
from outplan.cli.importing.rejections import Rejections
from outplan.cli.importing.tally import Tally
from outplan.cli.outcome import Exit, carried_out, failure, told
from outplan.cli.terminal import invitation, say

_AGAIN: Final = "Run the same import again{}: what was done is not done twice."


def take_in(file: str, how: Import) -> None:
    """Import, and give an account of it. Raises typer.Exit for any but a good end."""
    source, tally = _source(file), Tally()
    rejections = Rejections(_aside(file, how), more=how.from_line > 1)
    intake = Intake(source, how, tally, rejections)
    with told():
        stopped = _carry_out(intake, source, how, tally, rejections)
    _show(tally, rejections, how, finished=stopped is None)
    if stopped is not None:
        code, reason = stopped
        raise failure(f"{reason} {_reached(tally, intake, code)}", code)
    if tally.counts["unknown"]:
        raise failure(f"some commands have no verdict. {_AGAIN.format('')}", tally.code)
    if tally.code:
        raise typer.Exit(tally.code)


def _carry_out(
    intake: Intake, source: Source, how: Import, tally: Tally, rejections: Rejections
) -> tuple[Exit, str] | None:
    """Import; what stopped it, or None."""
    try:
        with invitation() if source.typed else gauge(tally, source.size), rejections:
            carried_out(intake.check() if how.dry_run else intake.send())
    except KeyboardInterrupt:
        return Exit.INTERRUPTED, "interrupted."
    except Silence:
        return Exit.UNKNOWN, "stopped, for nothing answers any more."
    except OSError as error:
        return Exit.FAILED, f"stopped: a file cannot be read or written: {error.strerror}."
    return None


def _source(file: str) -> Source:
    try:
        return Source(file)
    except OSError as error:
        raise failure(f"{file}: {error.strerror}", Exit.WRONG_USAGE) from None


def _aside(file: str, how: Import) -> Path:
    """Where rejections go. Looked at now, so that it does not fail after many lines."""
    path = Path(how.rejected or f"{'import' if file == '-' else file}.rejected.jsonl")
    usable = path if path.exists() else path.parent
    if path.is_dir() or not os.access(usable, os.W_OK):
        raise failure(f"{path}: cannot be written; see --rejected", Exit.WRONG_USAGE)
    if file != "-" and path.exists() and path.samefile(file):
        raise failure(f"{path}: is the file to be imported", Exit.WRONG_USAGE)
    return path


def _show(tally: Tally, rejections: Rejections, how: Import, finished: bool) -> None:
    aside = _name(rejections.path) if rejections.any else None
    if how.as_json:
        said = {**tally.object(), "rejected_file": aside, "finished": finished}
        typer.echo(orjson.dumps(said))
        return
    for line in tally.text():
        say(line)
    if aside:
        say(f"The rejected lines are in {aside}")


def _name(path: Path) -> str:
    """The path as text, also where its bytes are no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _reached(tally: Tally, intake: Intake, code: Exit) -> str:
    last = tally.reached.number
    if not last:
        return f"No line has been judged yet.\n{_AGAIN.format('')}"
    under_way = f", {intake.on_their_way} more were on their way" if intake.on_their_way else ""
    # After one without a verdict, or without its rejection written down, the whole is to be run.
    whole = tally.counts["unknown"] or code != Exit.INTERRUPTED
    on = "" if whole else f", or go on with --from-line {last + 1}"
    return f"All lines up to {last} have been judged{under_way}.\n{_AGAIN.format(on)}"

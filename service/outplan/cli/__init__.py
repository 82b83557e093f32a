"""The command line: ``outplan run`` and its neighbours."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outplan.cli import check, schema, servers, worker
from outplan.cli.importing.command import import_
from outplan.cli.outcome import unwritten
from outplan.cli.publish.command import app as publish
from outplan.cli.rejected.command import app as rejected
from outplan.cli.watch.command import watch


class Commands(TyperGroup):
    """All commands, and what each says where standard output takes nothing."""

    def main(self, *args: Any, **how: Any) -> Any:
        try:
            return super().main(*args, **how)
        except OSError as error:
            if error.errno is None:  # It is not the system that says so, such as a timeout.
                raise
            raise SystemExit(unwritten(error).exit_code) from None


app = typer.Typer(
    cls=Commands,
    help="Outplan commands from RabbitMQ to MongoDB, and events out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(worker.run)
app.command()(servers.demo)
app.command()(servers.sandbox)
app.command()(watch)
app.command()(schema.schema)
app.add_typer(publish, name="publish")
app.add_typer(rejected, name="rejected")
app.command()(check.check)
app.command("import")(import_)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("outplan-service"))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Settings come from OUTPLAN_… variables; see docs/running.md."""

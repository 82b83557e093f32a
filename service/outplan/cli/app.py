"""Declare the commands with their options and help texts.

A command imports the module that does its work when it runs: --help starts fast, and a command
needs its own extra only.
"""

import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from outplan.cli.help import (
    CHECK_CODES,
    IMPORT_CODES,
    PARTITIONS_CODES,
    PUBLISH_CODES,
    READ_CODES,
    REDRIVE_CODES,
    RUN_CODES,
    SCHEMA_CODES,
    SERVERS_CODES,
    STATUS_CODES,
    WATCH_CODES,
    HelpfulCommand,
    HelpfulGroup,
    describe_use,
)
from outplan.cli.options import (
    RETIRE_SECONDS,
    SETTLE_SECONDS,
    AsJson,
    BrokerOptions,
    CreateOptions,
    FilterOptions,
    ImportOptions,
    PreconditionOptions,
    PublishOptions,
    RedriveOptions,
    SelectOptions,
    ServiceOptions,
    UpdateOptions,
    WatchOptions,
    filter_option,
)
from outplan.cli.parameters import expand_groups, parse_seconds
from outplan.cli.stdout import discard_stdout
from outplan.domain.layout import MAX_PARTITIONS

OutplanId = Annotated[
    str | None,
    typer.Argument(
        metavar="ID", show_default=False, help="The outplan's id; or --json-file has it."
    ),
]
MessageIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="MESSAGE_ID", show_default=False, help="One id, or several."),
]

app: Final = typer.Typer(
    cls=HelpfulGroup,
    help="Run the outplan service, and work with its commands and events.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
publish: Final = typer.Typer(
    cls=HelpfulGroup, no_args_is_help=True, help="Send one command and print its outcome.",
    epilog=describe_use(PUBLISH_CODES),
)  # fmt: skip
rejected: Final = typer.Typer(
    cls=HelpfulGroup,
    no_args_is_help=True,
    help="List rejected commands, send them again, or discard them.",
)


def main() -> None:
    """Run the command line; report in one line if standard output cannot be written."""
    try:
        app(prog_name="outplan")
    except OSError as error:
        if error.errno is None:  # A TimeoutError, for example: not from the system.
            raise
        discard_stdout()
        sys.exit(f"outplan: {error.filename or 'standard output'}: {error.strerror}")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("outplan-service"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Declare the options of ``outplan`` itself."""


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        RUN_CODES,
        "outplan run",
        "OUTPLAN_HTTP_PORT=0 outplan run --prefix staging",
    ),
)
@expand_groups
def run(service: ServiceOptions) -> None:
    """Run a worker until SIGTERM or Ctrl-C; a second signal stops it at once.

    It reads its settings from the environment (docs/running.md).
    """
    service.apply()
    from outplan.cli.run import run_worker

    run_worker()


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        SERVERS_CODES,
    ),
)
def demo() -> None:
    """Send five commands and show their outcomes, on servers and a worker of its own."""
    from outplan.cli.demo import run_demo

    run_demo()


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        SERVERS_CODES,
    ),
)
def sandbox() -> None:
    """Run servers and a worker to try things out, until Ctrl-C."""
    from outplan.cli.demo import run_sandbox

    run_sandbox()


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        WATCH_CODES,
        "outplan watch --kind updated",
        "outplan watch --outplan-id 9f962a97-99e6-5306-b7e9-d211d662d311 --limit 1",
        "outplan watch | jq -c .data.id",
    ),
)
@expand_groups
def watch(options: WatchOptions) -> None:
    """Show events as they arrive: a table on a terminal, JSON Lines otherwise.

    Standard error reports gaps, unreadable events and lost connections.
    """
    from outplan.cli.watch import watch_events

    watch_events(options)


def _complete_schema() -> list[str]:
    from outplan.contract.schemas import list_schema_names

    return list(list_schema_names())


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        SCHEMA_CODES,
        "outplan schema",
        "outplan schema create",
    ),
)
def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="The schema to print; 'create' is short for 'outplan_create', and so on.",
            autocompletion=_complete_schema,
        ),
    ] = None,
) -> None:
    """List the contract's JSON Schemas, or print one."""
    from outplan.cli.schema import list_schemas, print_schema

    if name is None:
        list_schemas()
    else:
        print_schema(name)


@publish.command(
    no_args_is_help=True,
    cls=HelpfulCommand,
    epilog=describe_use(
        PUBLISH_CODES,
        "outplan publish create --customer-id 5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11 --name evenings "
        "--source tel:+15559876543 --dial-timeout 30s --max-try-count-0 3",
    ),
)
@expand_groups
def create(fields: CreateOptions, options: PublishOptions) -> None:
    """Create an outplan; it needs a customer, a name and a source."""
    from outplan.cli.publish import publish_command

    publish_command("outplan_create", asdict(fields), options)


@publish.command(
    no_args_is_help=True,
    cls=HelpfulCommand,
    epilog=describe_use(
        PUBLISH_CODES,
        "outplan publish update 9f962a97-99e6-5306-b7e9-d211d662d311 --try-interval 5m",
    ),
)
@expand_groups
def update(fields: UpdateOptions, options: PublishOptions, outplan_id: OutplanId = None) -> None:
    """Change fields of the outplan ID; the others keep their values."""
    from outplan.cli.publish import publish_command

    publish_command("outplan_update", {"id": outplan_id, **asdict(fields)}, options)


@publish.command(
    no_args_is_help=True,
    cls=HelpfulCommand,
    epilog=describe_use(
        PUBLISH_CODES,
        "outplan publish delete 9f962a97-99e6-5306-b7e9-d211d662d311",
    ),
)
@expand_groups
def delete(
    fields: PreconditionOptions, options: PublishOptions, outplan_id: OutplanId = None
) -> None:
    """Delete the outplan ID. Its history stays, and its id cannot be used again."""
    from outplan.cli.publish import publish_command

    publish_command("outplan_delete", {"id": outplan_id, **asdict(fields)}, options)


app.add_typer(publish, name="publish")


@rejected.command(
    "list",
    cls=HelpfulCommand,
    epilog=describe_use(
        READ_CODES,
        "outplan rejected list --code invalid_command --newer-than 1d",
    ),
)
@expand_groups
def list_(
    message_id: Annotated[
        list[str] | None,
        filter_option("The command's id. Can be repeated.", "--message-id", metavar="MESSAGE_ID"),
    ] = None,
    *,
    filters: FilterOptions,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Show the N oldest only; 0 only counts."),
    ] = None,
    as_json: AsJson = False,
    broker: BrokerOptions,
) -> None:
    """List rejected commands, the oldest first, and count them by code."""
    from outplan.cli.rejected import list_rejected

    list_rejected(broker, filters, message_id or [], limit, as_json=as_json)


@rejected.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        READ_CODES,
        "outplan rejected show 3",
    ),
)
@expand_groups
def show(
    which: Annotated[
        str,
        typer.Argument(
            metavar="MESSAGE_ID|N", show_default=False,
            help="The command's id, or the number that list shows.",
        ),
    ],
    *,
    as_json: AsJson = False,
    broker: BrokerOptions,
) -> None:  # fmt: skip
    """Show a rejected command: every error, its body, and whether it is valid today."""
    from outplan.cli.rejected import show_rejected

    show_rejected(broker, which, as_json=as_json)


@rejected.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        REDRIVE_CODES,
        "outplan rejected redrive --code not_found --dry-run",
    ),
)
@expand_groups
def redrive(
    message_id: MessageIds = None,
    *,
    selection: SelectOptions,
    options: RedriveOptions,
    as_json: AsJson = False,
    broker: BrokerOptions,
) -> None:
    """Send rejected commands again, the oldest first, under the same message_id.

    redrive does not send what is invalid today. It removes a message when its command has an
    outcome, so an interruption loses nothing.
    """
    from outplan.cli.rejected import redrive_rejected

    redrive_rejected(broker, selection, message_id or [], options, as_json=as_json)


@rejected.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        READ_CODES,
        "outplan rejected discard --older-than 30d --save dropped.jsonl",
    ),
)
@expand_groups
def discard(
    message_id: MessageIds = None,
    *,
    selection: SelectOptions,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, dir_okay=False,
            help="First append the messages to FILE, whole, as JSON Lines.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    broker: BrokerOptions,
) -> None:  # fmt: skip
    """Discard rejected commands for ever, after asking."""
    from outplan.cli.rejected import discard_rejected

    discard_rejected(broker, selection, message_id or [], save=save, yes=yes, as_json=as_json)


app.add_typer(rejected, name="rejected")


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        CHECK_CODES,
        "outplan check",
        "outplan check --prefix staging --json",
    ),
)
@expand_groups
def check(service: ServiceOptions, as_json: AsJson = False) -> None:
    """Check settings, RabbitMQ and MongoDB for a worker, and say what to do.

    It changes nothing. It reads the worker's settings from the environment.
    """
    service.apply()
    from outplan.cli.check import print_checks

    print_checks(as_json=as_json)


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        STATUS_CODES,
        "outplan status",
        "outplan status --watch",
        "outplan status --json | jq '.queues[] | select(.ready > 1000)'",
    ),
)
@expand_groups
def status(
    service: ServiceOptions,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        Any,
        typer.Option(
            parser=parse_seconds, metavar="DURATION", show_default="2s",
            help="The time between two refreshes of --watch.",
        ),
    ] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch, one a line.")
    ] = False,
) -> None:  # fmt: skip
    """Show what the service does now: workers, queues, rejected commands, subscribers' queues.

    It changes nothing. It reads the worker's settings from the environment.
    """
    service.apply()
    from outplan.cli.status import show_status

    show_status(watch=watch, interval=interval, as_json=as_json)


@app.command(
    cls=HelpfulCommand,
    epilog=describe_use(
        PARTITIONS_CODES,
        "outplan partitions",
        "outplan partitions 16",
    ),
)
@expand_groups
def partitions(
    service: ServiceOptions,
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="N",
            min=1,
            max=MAX_PARTITIONS,
            show_default=False,
            help="The number to change to; without it, show the number and the workers.",
        ),
    ] = None,
    *,
    abort: Annotated[
        bool, typer.Option("--abort", help="Undo a change that is in its phase divert.")
    ] = False,
    settle: Annotated[
        Any,
        typer.Option(
            parser=parse_seconds,
            metavar="DURATION",
            show_default="1s",
            help="Time for all nodes of RabbitMQ to learn of a binding.",
        ),
    ] = SETTLE_SECONDS,
    retire: Annotated[
        Any,
        typer.Option(
            parser=parse_seconds,
            metavar="DURATION",
            show_default="3m",
            help="Time for workers to consume old queues before these are deleted.",
        ),
    ] = RETIRE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Show or change the number of partitions while commands are published and handled.

    Killed or interrupted, a change waits: run the command again, and it goes on. It needs the
    worker's settings in the environment, and at least one worker.
    """
    service.apply()
    from outplan.cli.partitions import change_partitions, show_partitions

    if number is None and not abort:
        show_partitions(as_json=as_json)
    elif number is not None and abort:
        raise typer.BadParameter("give N or --abort, not both")
    else:
        change_partitions(number, abort=abort, settle=settle, retire=retire)


@app.command(
    "import",
    cls=HelpfulCommand,
    epilog=describe_use(
        IMPORT_CODES,
        "outplan import plans.jsonl --dry-run",
        "jq -c '.[]' plans.json | outplan import -",
    ),
)
@expand_groups
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", show_default=False, help="JSON Lines; - reads standard input."
        ),
    ],
    options: ImportOptions,
) -> None:
    """Send the commands in FILE (JSON Lines; - is standard input), and count the outcomes.

    A line is an outplan to create, an event to repeat, or a command: {"command": "update", "body":
    {…}}. Importing a file again applies nothing twice.
    """
    from outplan.cli.importer import import_file

    import_file(file, options)

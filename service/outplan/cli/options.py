"""Declare options in groups: a dataclass for a group, a field for an option.

Commands and the modules that do their work share these groups.
"""

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from outplan.cli.parameters import (
    check_codes,
    check_mongo,
    check_prefix,
    check_printable,
    check_short_text,
    check_url,
    list_codes,
    parse_address,
    parse_age,
    parse_milliseconds,
    parse_timeout,
)

_FIELDS: Final = "Fields"
_SENDING: Final = "Sending"
_SETTINGS: Final = "Settings of the worker, in place of the environment's"
_FILTERS: Final = "Filters, all of which must match"


@dataclass(frozen=True, kw_only=True)
class BrokerOptions:
    """Name the broker and the service's prefix."""

    amqp_url: Annotated[
        str,
        typer.Option(
            envvar="OUTPLAN_AMQP_URL",
            show_envvar=True,
            metavar="URL",
            callback=check_url,
            help="The broker's URL.",
        ),
    ] = "amqp://guest:guest@localhost:5672/"
    prefix: Annotated[
        str,
        typer.Option(
            envvar="OUTPLAN_PREFIX", show_envvar=True, metavar="TEXT",
            callback=check_prefix, help="The service's name prefix.",
        ),
    ] = "outplan"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClientOptions(BrokerOptions):
    """Name the broker, and how long a command may take."""

    timeout: Annotated[
        Any,
        typer.Option(
            metavar="DURATION", parser=parse_timeout, show_default="30s",
            help="How long a command may take, reconnects included: seconds, or 500ms, 30s, 5m.",
        ),
    ] = 30  # fmt: skip


def _service_option(help_: str, variable: str, default: str, **options: Any) -> Any:
    return typer.Option(
        rich_help_panel=_SETTINGS, help=help_, show_default=f"{variable}, or {default}", **options
    )


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Replace a worker's settings in the environment."""

    amqp_url: Annotated[
        str | None,
        _service_option(
            "RabbitMQ's URL.", "OUTPLAN_AMQP_URL", "amqp://guest:guest@localhost:5672/",
            metavar="URL", callback=check_url,
        ),
    ] = None  # fmt: skip
    mongo_url: Annotated[
        str | None,
        _service_option(
            "MongoDB's URL.", "OUTPLAN_MONGO_URL", "mongodb://localhost:27017/?replicaSet=rs0",
            metavar="URL", callback=check_mongo,
        ),
    ] = None  # fmt: skip
    mongo_database: Annotated[
        str | None,
        _service_option("The database.", "OUTPLAN_MONGO_DATABASE", "outplan", metavar="TEXT"),
    ] = None
    prefix: Annotated[
        str | None,
        _service_option(
            "The service's name prefix.", "OUTPLAN_PREFIX", "outplan",
            metavar="TEXT", callback=check_prefix,
        ),
    ] = None  # fmt: skip

    def apply(self) -> None:
        """Put what was given into the environment, where the worker reads its settings."""
        for field, value in asdict(self).items():
            if value is not None:
                os.environ[f"OUTPLAN_{field.upper()}"] = value


# For ``outplan partitions``. Nodes of a cluster learn of a binding within milliseconds.
SETTLE_SECONDS: Final = 1.0
# A node of RabbitMQ that stood still may route to an old queue once more, and confirm what is lost
# if that is deleted. Within three default heartbeats the connections through such a node end.
RETIRE_SECONDS: Final = 180.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON Lines.")]


def _field(help_: str, **options: Any) -> Any:
    return typer.Option(rich_help_panel=_FIELDS, show_default=False, help=help_, **options)


def _sending(help_: str, **options: Any) -> Any:
    return typer.Option(rich_help_panel=_SENDING, help=help_, **options)


def _attempts(index: int) -> Any:
    return _field(f"Attempts for destination {index}, 0 to 1000; 0 never dials it.", metavar="N")


@dataclass(frozen=True, kw_only=True)
class OwnerOptions:
    """Hold the owner of an outplan."""

    customer_id: Annotated[str | None, _field("The customer's id.", metavar="UUID")] = None


@dataclass(frozen=True, kw_only=True)
class PreconditionOptions(OwnerOptions):
    """Hold what must be true of an outplan that a command changes."""

    expected_version: Annotated[
        int | None, _field("Reject the command unless the outplan has this version.", metavar="N")
    ] = None


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """Hold the fields that creates and updates set."""

    name: Annotated[str | None, _field("1 to 255 characters.", metavar="TEXT")] = None
    detail: Annotated[str | None, _field("A description.", metavar="TEXT")] = None
    source: Annotated[
        Any,
        _field(
            "The caller id: tel:+15559876543, sip:user@host, …, or an address as JSON.",
            parser=parse_address, metavar="TYPE:TARGET",
        ),
    ] = None  # fmt: skip
    dial_timeout: Annotated[
        Any,
        _field(
            "How long to let it ring, 1s to 10m. A number alone is milliseconds.",
            parser=parse_milliseconds,
            metavar="DURATION",
        ),
    ] = None
    try_interval: Annotated[
        Any,
        _field(
            "How long to wait between attempts, 1s or more, or 0. A number alone is milliseconds.",
            parser=parse_milliseconds, metavar="DURATION",
        ),
    ] = None  # fmt: skip
    max_try_count_0: Annotated[int | None, _attempts(0)] = None
    max_try_count_1: Annotated[int | None, _attempts(1)] = None
    max_try_count_2: Annotated[int | None, _attempts(2)] = None
    max_try_count_3: Annotated[int | None, _attempts(3)] = None
    max_try_count_4: Annotated[int | None, _attempts(4)] = None


@dataclass(frozen=True, kw_only=True)
class CreateOptions(FieldOptions, OwnerOptions):
    """Hold the fields of a create."""

    id: Annotated[
        str | None, _field("The outplan's id; without it, the worker derives one.", metavar="UUID")
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(FieldOptions, PreconditionOptions):
    """Hold the fields of an update, apart from the id."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions(ClientOptions):
    """Say how to read, send and report a command."""

    json_file: Annotated[
        str | None,
        _sending(
            "Read the fields from a JSON object; - is standard input. Options override it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    message_id: Annotated[
        str | None,
        _sending(
            "The command's id. A command that is sent again with the same id takes effect once.",
            callback=check_short_text, show_default=False, metavar="MESSAGE_ID",
        ),
    ] = None  # fmt: skip
    wait: Annotated[bool, _sending("Wait for the reply, not just the broker's confirm.")] = True
    validate: Annotated[bool, _sending("Validate the fields before sending the command.")] = True
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_SENDING, help="Print one JSON object.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ClientOptions):
    """Say how to read, send and report lines."""

    in_flight: Annotated[
        int,
        typer.Option(min=1, max=10_000, metavar="N", help="How many commands to keep in flight."),
    ] = 500
    rejected: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default="FILE.rejected.jsonl",
            help="Write rejected lines to FILE; it is created with the first one.",
        ),
    ] = None  # fmt: skip
    from_line: Annotated[
        int, typer.Option(min=1, metavar="N", help="Skip the lines before N.")
    ] = 1  # fmt: skip
    label: Annotated[
        str,
        typer.Option(
            callback=check_printable, show_default=False, metavar="TEXT",
            help="Part of the commands' ids: another label imports the file anew.",
        ),
    ] = ""  # fmt: skip
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only validate the lines; this needs no broker.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False


class EventKind(StrEnum):
    """Name a kind of event briefly."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True, kw_only=True)
class WatchOptions(BrokerOptions):
    """Say which events to show, and how."""

    kind: Annotated[
        list[EventKind],
        typer.Option(
            metavar="KIND",
            show_default=False,
            help="Show this kind only: created, updated or deleted. Can be repeated.",
        ),
    ] = ()  # type: ignore[assignment] # typer makes a list of the default
    customer_id: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Show this customer's outplans only.")
    ] = None
    outplan_id: Annotated[
        UUID | None, typer.Option(metavar="UUID", help="Show this outplan only.")
    ] = None  # fmt: skip
    queue: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=check_short_text,
            help="Read from a durable queue. watch declares it if it does not exist; it stays, "
            "and collects events while nobody watches.",
        ),
    ] = None  # fmt: skip
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N events.")
    ] = None  # fmt: skip
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines on a terminal too.")
    ] = False  # fmt: skip


def filter_option(help_: str, *names: str, **options: Any) -> Any:
    """Declare an option that selects rejected messages."""
    return typer.Option(
        *names, rich_help_panel=_FILTERS, show_default=False, help=help_, **options
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Say which rejected messages to select: those that match every filter."""

    code: Annotated[
        list[str],
        filter_option(
            "The problem's code, or the broker's reason. Can be repeated.",
            callback=check_codes,
            autocompletion=list_codes,
            metavar="CODE",
        ),
    ] = ()  # type: ignore[assignment] # typer makes a list of the default
    customer_id: Annotated[UUID | None, filter_option("The customer's id.", metavar="UUID")] = None
    outplan_id: Annotated[UUID | None, filter_option("The outplan's id.", metavar="UUID")] = None
    older_than: Annotated[
        Any, filter_option("Rejected before 30m, 12h, 2d … ago.", parser=parse_age, metavar="AGE")
    ] = None
    newer_than: Annotated[
        Any, filter_option("Rejected within the last 30m, 12h, 2d ….", parser=parse_age,
                           metavar="AGE")
    ] = None  # fmt: skip
    number: Annotated[
        list[int],
        filter_option(
            "The number that list shows; 1 is the oldest. Can be repeated.", min=1, metavar="N"
        ),
    ] = ()  # type: ignore[assignment] # as above


@dataclass(frozen=True, kw_only=True)
class SelectOptions(FilterOptions):
    """Say which rejected messages to act on; a command without any selection is refused."""

    all: Annotated[bool, filter_option("Every message; excludes filters.", "--all")] = False


@dataclass(frozen=True, kw_only=True)
class RedriveOptions:
    """Say how to send rejected commands again."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate against today's schema; send nothing.")
    ] = False
    rate: Annotated[
        float, typer.Option(min=0.01, max=10_000, metavar="N", help="Send at most N a second.")
    ] = 50
    timeout: Annotated[
        Any,
        typer.Option(
            metavar="DURATION", parser=parse_timeout, show_default="30s",
            help="How long to wait for each reply: seconds, or 500ms, 30s, 5m.",
        ),
    ] = 30  # fmt: skip
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Continue when the same problem comes back.")
    ] = False

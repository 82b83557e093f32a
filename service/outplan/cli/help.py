"""Show help without Python's types, with examples and exit codes; take former spellings."""

import re
from collections.abc import Mapping
from typing import Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

# Each option has one spelling. These came before, and are not shown.
_FORMER: Final = {"--customer": "--customer-id", "--outplan": "--outplan-id"}

_WORDS: Final = (
    (r"Input should be a valid integer.*", r"should be a whole number"),
    (r"Input should be a valid number.*", r"should be a number"),
    (
        r"Input should be a valid UUID.*",
        r"should be a valid UUID, such as 5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11",
    ),
    (r"Input should be greater than or equal to (.*)", r"should be at least \1"),
    (r"Input should be less than or equal to (.*)", r"should be at most \1"),
    (r"(?:Input|Value error,) (.*)", r"\1"),
)

_OK: Final = {0: "done"}
_USAGE: Final = {2: "wrong usage"}
_INTERRUPTED: Final = {130: "Ctrl-C or SIGTERM"}
_BROKER: Final = {1: "RabbitMQ is unreachable, or refuses"}
RUN_CODES: Final = {
    0: "drained after SIGTERM or Ctrl-C",
    1: "only a person can mend it: one line says what",
    2: "a setting is wrong",
}
WATCH_CODES: Final = {
    0: "--limit events were shown, or nobody reads the output any more",
    1: "RabbitMQ refuses, or the output cannot be written",
    **_USAGE, **_INTERRUPTED,
}  # fmt: skip
PUBLISH_CODES: Final = {
    0: "accepted, unchanged or a duplicate; with --no-wait: confirmed",
    1: "RabbitMQ is unreachable, or refuses: it sent nothing",
    2: "wrong usage: it sent nothing",
    3: "the worker rejected the command: it stored nothing",
    4: "unknown: no reply in time",
    5: "the command breaks its schema: it sent nothing",
    130: "Ctrl-C or SIGTERM: the outcome is unknown",
}
IMPORT_CODES: Final = {
    0: "all lines succeeded",
    1: "RabbitMQ is unreachable, or a file cannot be read or written",
    **_USAGE,
    3: "some lines are invalid, or the worker rejected them",
    4: "some commands have no outcome: run it again",
    **_INTERRUPTED,
}
READ_CODES: Final = {**_OK, **_BROKER, **_USAGE, **_INTERRUPTED}
REDRIVE_CODES: Final = {
    0: "every command is accepted, unchanged or a duplicate",
    **_BROKER, **_USAGE,
    3: "some are invalid, or rejected again",
    4: "the outcome of one command is unknown",
    **_INTERRUPTED,
}  # fmt: skip
CHECK_CODES: Final = {
    0: "no problem, whatever the warnings",
    1: "a problem",
    2: "a worker would refuse its settings",
}
STATUS_CODES: Final = {
    0: "shown",
    1: "MongoDB or RabbitMQ does not answer: it shows the rest",
    2: "wrong usage, or a wrong setting",
    130: "Ctrl-C or SIGTERM",
}
PARTITIONS_CODES: Final = {
    0: "the number is in force",
    1: "it cannot be changed now",
    2: "wrong usage, or a wrong setting",
    130: "Ctrl-C or SIGTERM: the change waits",
}
SCHEMA_CODES: Final = {0: "printed", 2: "there is no such schema"}
SERVERS_CODES: Final = {0: "done", 1: "the servers or the worker cannot start"}


def describe_use(codes: Mapping[int, str], *examples: str) -> str:
    """Return a command's epilog: examples, a line each, and exit codes."""
    shown = ["Examples:", *examples, " "] if examples else []
    shown += ["Exit codes:", *(f"{code}: {meaning}" for code, meaning in codes.items())]
    return "\n\n".join(shown)


class _Helpful:
    """Show no Python types: an option names its value itself, a flag has none."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = _show_nothing  # type: ignore[method-assign]
            elif getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for param in self.get_params(ctx) for name in param.opts}
        spelt = [_respell(each, known) for each in args]
        try:
            found: list[str] = super().parse_args(ctx, spelt)  # type: ignore[misc]
        except typer.BadParameter as error:
            error.message = _reword(error.message)
            raise
        return found


class HelpfulCommand(_Helpful, TyperCommand):
    """A command with such a help text."""


class HelpfulGroup(_Helpful, TyperGroup):
    """A group of commands with such a help text."""


def _show_nothing(ctx: Any) -> None:  # noqa: ARG001
    return None


def _reword(message: str) -> str:
    """Say in plain words what pydantic, which typer asks, says about a value."""
    for pattern, words in _WORDS:
        if matched := re.match(pattern, message):
            return matched.expand(words)
    return message


def _respell(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    now = _FORMER.get(name)
    return f"{now}{equals}{value}" if now in known else argument

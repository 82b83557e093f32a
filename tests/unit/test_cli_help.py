"""Test the help texts: no Python types, one spelling, examples, exit codes."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from outplan.cli.app import app
from outplan.cli.errors import ExitCode
from tests.support.plain_words import find_foreign_words

GROUPS = {"publish", "rejected"}


def list_commands(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name in sorted(getattr(command, "commands", {})):
        yield from list_commands(command.commands[name], *names, name)


COMMANDS = list(list_commands(get_command(app)))
LEAVES = [names for names in COMMANDS if names and names[-1] not in GROUPS]


def show_help(*names: str) -> str:
    shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_no_help_shows_a_type_of_python(names: tuple[str, ...]) -> None:
    text = show_help(*names)
    assert not find_foreign_words(text)
    assert not re.search(r"<\w+|\b(UUID_TYPE|INTEGER|FLOAT|BOOLEAN)\b", text)


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_each_help_has_exit_codes_and_examples(names: tuple[str, ...]) -> None:
    text = show_help(*names)
    codes = [int(code) for code in re.findall(r"^ *(\d+): ", text, re.MULTILINE)]
    assert codes
    assert set(codes) <= set(ExitCode)
    if names[0] not in ("demo", "sandbox"):
        assert f"outplan {' '.join(names)}" in text.partition("Examples:")[2]


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_an_option_has_one_spelling_everywhere(names: tuple[str, ...]) -> None:
    options = set(re.findall(r"(?<= )--[a-z0-9-]+", show_help(*names).partition("Examples:")[0]))
    assert not options & {"--customer", "--outplan", "--url", "--broker"}
    if names[0] not in ("demo", "sandbox", "schema"):
        assert options >= {"--amqp-url", "--prefix"}


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_defaults_from_the_environment_are_shown(names: tuple[str, ...]) -> None:
    text = show_help(*names)
    if "--amqp-url" in text:
        assert "OUTPLAN_AMQP_URL" in text
        assert "OUTPLAN_PREFIX" in text
    if "--mongo-url" in text:
        assert "OUTPLAN_MONGO_URL" in text


@pytest.mark.parametrize("former", ["--customer", "--outplan"])
@pytest.mark.parametrize("form", ["{} nobody", "{}=nobody"])
@pytest.mark.parametrize("command", ["watch", "rejected list"])
def test_a_former_spelling_is_taken_without_being_shown(
    former: str, form: str, command: str
) -> None:
    given = [*command.split(), *form.format(former).split()]
    refused = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert f"Invalid value for '{former}-id'" in refused.output
    assert "valid UUID" in refused.output


def test_an_option_of_a_worker_replaces_the_environments() -> None:
    wrong = CliRunner().invoke(app, ["check", "--prefix", "a b"], env={"COLUMNS": "200"})
    assert (wrong.exit_code, "letters, digits" in wrong.output) == (2, True)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("watch --limit x", "'--limit': should be a whole number"),
        ("watch --limit 0", "'--limit': should be at least 1"),
        ("watch --customer-id 7", "'--customer-id': should be a valid UUID"),
        ("watch --kind x", "'x' is not one of 'created', 'updated', 'deleted'"),
        ("publish create --max-try-count-0 x", "'--max-try-count-0': should be a whole number"),
        ("publish create --dial-timeout x", "a duration such as 30s, 5m or 1h"),
        ("publish create --timeout 0", "'--timeout': should be at least 0.1 s"),
        ("partitions x", "'N': should be a whole number"),
        ("partitions 999", "'N': should be at most 256"),
        ("partitions --settle x", "a duration such as 30s, 5m or 1h"),
        ("rejected redrive --all --rate x", "'--rate': should be a number"),
        ("rejected list --older-than x", "is not an age such as 45s"),
        ("check --mongo-url mongodb://h:99999/", "'--mongo-url': has a port that is no number"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(command: str, told: str) -> None:
    refused = CliRunner().invoke(app, command.split(), env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert told in refused.output
    assert not find_foreign_words(refused.output)

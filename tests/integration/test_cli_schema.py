"""Run ``outplan schema`` and the completion of commands as a shell does."""

import subprocess
import sys
from pathlib import Path

import pytest

from outplan.contract.schemas import list_schema_names

SCHEMAS = Path(__file__).parents[2] / "schemas"
OUTPLAN = Path(sys.executable).with_name("outplan")


def outplan(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [OUTPLAN, *arguments],
        env={"PATH": "/usr/bin:/bin", "TERM": "dumb", "COLUMNS": "200", **environment},
        capture_output=True,
        timeout=30,
        check=False,
    )


def completions(line: str, position: int) -> list[str]:
    asked = {"_OUTPLAN_COMPLETE": "complete_bash", "COMP_CWORD": str(position)}
    return outplan(COMP_WORDS=line, **asked).stdout.decode().split()


def test_each_schema_is_listed_in_a_line() -> None:
    listed = outplan("schema")

    lines = listed.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == list(list_schema_names())
    assert "outplan_create    Creates an outplan" in lines
    assert all(len(line) <= 110 for line in lines)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("outplan_create", "outplan_create"),
        ("create", "outplan_create"),
        ("Deleted", "outplan_deleted"),
        ("outplan-update.json", "outplan_update"),
        ("outplan", "outplan"),
        ("address", "address"),
    ],
)
def test_a_schema_is_printed_exactly_as_its_file_is(name: str, file: str) -> None:
    assert outplan("schema", name).stdout == (SCHEMAS / f"{file}.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("creat", "Did you mean create or"),
        ("outplan_deletd", "Did you mean outplan_delete"),
        ("problems", "Did you mean problem?"),
        ("../pyproject", "'outplan schema' lists"),
        ("", "'outplan schema' lists"),
    ],
)
def test_an_unknown_schema_is_reported_with_similar_names(name: str, advice: str) -> None:
    wrong = outplan("schema", name)

    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert advice in wrong.stderr.decode()
    assert b"Traceback" not in wrong.stderr


def test_the_completion_script_is_printed() -> None:
    script = outplan("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")

    assert script.returncode == 0
    assert b"complete -o default -F _outplan_completion outplan" in script.stdout


@pytest.mark.parametrize(
    ("line", "position", "expected"),
    [
        ("outplan w", 1, {"watch"}),
        ("outplan s", 1, {"sandbox", "schema", "status"}),
        ("outplan schema out", 2, {n for n in list_schema_names() if n.startswith("outplan")}),
        ("outplan watch --ki", 2, {"--kind"}),
        ("outplan watch --kind ", 3, {"created", "updated", "deleted"}),
        (
            "outplan rejected list --code inv",
            4,
            {"invalid_json", "invalid_command", "invalid_properties"},
        ),
    ],
)
def test_commands_options_and_values_are_completed(
    line: str, position: int, expected: set[str]
) -> None:
    assert set(completions(line, position)) == expected

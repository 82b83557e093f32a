"""A command whose extra is not installed names the one to install."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # Importing it raises ModuleNotFoundError.
sys.argv = ["outplan", *{arguments!r}]
from outplan.__main__ import main
main()
"""
CLI = ["typer", "rich", "click"]
WORKER = [
    "aiohttp", "bson", "motor", "prometheus_client", "pydantic_settings", "pymongo", "structlog",
    "uvloop",
]  # fmt: skip
TESTING = ["pytest", "testcontainers", "pika"]


def run_without(missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(missing=missing, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (CLI + WORKER + TESTING, [], "cli"),
        (CLI + WORKER + TESTING, ["--help"], "cli"),
        (CLI + WORKER + TESTING, ["schema"], "cli"),
        (CLI + WORKER + TESTING, ["publish", "create", "--name", "x"], "cli"),
        (CLI + WORKER + TESTING, ["run"], "worker"),
        (WORKER + TESTING, ["run"], "worker"),
        (WORKER + TESTING, ["check", "--json"], "worker"),
        (WORKER + TESTING, ["partitions"], "worker"),
        (WORKER + TESTING, ["partitions", "4"], "worker"),
        (WORKER + TESTING, ["demo"], "testing"),
        (WORKER + TESTING, ["sandbox"], "testing"),
        (TESTING, ["demo"], "testing"),
        (["testcontainers"], ["demo"], "testing"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    missing: list[str], arguments: list[str], extra: str
) -> None:
    refused = run_without(missing, *arguments)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.endswith(f"pip install 'outplan-service[{extra}]'\n")
    assert refused.stderr.startswith("outplan: ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["schema", "create"], 0),
        (["publish", "create", "--name", "x"], 5),
        (["import", "-", "--rejected", "/dev/null"], 1),
        (["rejected", "list"], 1),
        (["watch", "--kind", "nonsense"], 2),
    ],
)
def test_commands_of_the_cli_extra_need_no_other_extra(arguments: list[str], code: int) -> None:
    nobody = ["--amqp-url", "amqp://127.0.0.1:1/", "--timeout", "0.1"]
    options = {"import": nobody, "rejected": nobody[:2]}.get(arguments[0], [])
    done = run_without(WORKER + TESTING, *arguments, *options)
    assert done.returncode == code, done.stderr
    assert "pip install" not in done.stderr


def test_the_modules_of_the_cli_extra_import_no_other_extra() -> None:
    modules = ["publish", "importer", "watch", "rejected", "schema"]
    program = "import importlib, sys\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in WORKER + TESTING
    )
    program += "".join(f"importlib.import_module('outplan.cli.{name}')\n" for name in modules)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_missing_module_of_the_package_itself_is_no_missing_extra() -> None:
    broken = run_without(["outplan.cli.app"], "--help")
    assert broken.returncode == 1
    assert "Traceback" in broken.stderr

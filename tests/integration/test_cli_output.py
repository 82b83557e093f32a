"""Run ``outplan`` where its output cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outplan.testing import Deployment

NOWHERE = Deployment("amqp://guest:guest@127.0.0.1:1/", "")


def outplan(*arguments: str, stdout: str) -> subprocess.CompletedProcess[str]:
    """Run a command with standard output redirected by a shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {stdout}', "sh", sys.executable, "-m", "outplan", *arguments],
        env=NOWHERE.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["schema"],
        ["schema", "create"],
        ["import", "-", "--dry-run", "--rejected", os.devnull],
        ["import", "-", "--dry-run", "--rejected", os.devnull, "--json"],
    ],
)
def test_a_full_disk_is_reported_in_one_line(arguments: list[str]) -> None:
    full = outplan(*arguments, stdout=">/dev/full")
    assert full.returncode == 1
    assert full.stderr == "outplan: standard output: No space left on device\n"


def test_an_unreachable_broker_is_reported_with_what_to_check() -> None:
    missing = outplan("rejected", "list", stdout=">/dev/full")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "nothing listens at " in missing.stderr
    assert "OUTPLAN_AMQP_URL" in missing.stderr


def test_a_closed_pipe_is_not_reported() -> None:
    left = outplan("schema", "create", stdout="| true")
    assert left.stderr == ""


def test_a_file_name_that_is_not_utf_8_is_printed_in_json(tmp_path: Path) -> None:
    file = tmp_path / "\udcff.jsonl"
    file.write_text("nonsense\n")
    done = outplan("import", str(file), "--dry-run", "--json", stdout=">/dev/null")
    assert (done.returncode, done.stderr) == (3, "")

"""Run the programs of README.md and docs/testing.md, and the last one of docs/clients.md."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from outplan.testing import Deployment
from tests.support.examples import ROOT, read_code_blocks, run_program
from tests.support.worker_process import run_worker


async def run_code(program: str, deployment: Deployment) -> str:
    return await run_python(deployment, ROOT, "-W", "error", "-c", program)


async def run_python(deployment: Deployment, folder: Path, *arguments: str) -> str:
    environment = deployment.environment(
        OUTPLAN_TEST_AMQP_URL=deployment.amqp_url, OUTPLAN_TEST_MONGO_URL=deployment.mongo_url
    )
    return await run_program(sys.executable, *arguments, folder=folder, environment=environment)


@pytest.fixture
async def default_deployment(deployment: Deployment) -> Deployment:
    """Use the default prefix, as the pages do."""
    return replace(deployment, prefix="outplan")


async def test_the_readmes_first_commands_print_what_it_says(
    default_deployment: Deployment,
) -> None:
    (create,) = read_code_blocks("README.md")
    delete = read_code_blocks("docs/clients.md")[-1]
    async with run_worker(default_deployment) as worker:
        printed = await run_code(create, default_deployment)
        await run_code(delete, default_deployment)
        assert (await worker.wait_for_log("command_rejected"))["code"] == "not_found"
    await default_deployment.drop()

    assert printed == "accepted in version 1\noutplan_created evenings, twice\n"


async def test_the_example_without_pytest_runs(deployment: Deployment) -> None:
    (program,) = [
        block for block in read_code_blocks("docs/testing.md") if "def test_" not in block
    ]
    await run_code(program, deployment)


async def test_the_example_tests_pass(deployment: Deployment, tmp_path: Path) -> None:
    tests = [block for block in read_code_blocks("docs/testing.md") if "def test_" in block]
    for number, test in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(test)
    run_pytest = ["-m", "pytest", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    # Tests with this marker stop their servers, so they cannot run on the shared ones.
    own = "outplan_own_servers"
    on_servers = await run_python(deployment, tmp_path, *run_pytest, "-m", f"not {own}")
    in_memory = await run_python(
        deployment, tmp_path, *run_pytest, "-m", own, "--outplan-mode=memory"
    )

    assert f"{len(tests) - 1} passed, 1 deselected" in on_servers
    assert f"1 passed, {len(tests) - 1} deselected" in in_memory

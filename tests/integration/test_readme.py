"""Run the programs of README.md and docs/testing.md, and the last one of docs/clients.md."""

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, delete_deployment
from tests.support.worker_process import run_worker

ROOT = Path(__file__).parents[2]


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


async def ran(program: str, deployment: Deployment) -> str:
    return await ran_python(deployment, ROOT, "-W", "error", "-c", program)


async def ran_python(deployment: Deployment, folder: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        env=deployment.environment(
            OUTPLAN_TEST_AMQP_URL=deployment.amqp_url, OUTPLAN_TEST_MONGO_URL=deployment.mongo_url
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()
    return out.decode()


@pytest.fixture
async def default_place(deployment: Deployment) -> Deployment:
    """The names that the pages use."""
    return replace(deployment, prefix="outplan")


async def test_the_first_commands_do_what_the_readme_says(default_place: Deployment) -> None:
    (create,) = snippets("README.md")
    delete = snippets("docs/clients.md")[-1]
    async with run_worker(default_place) as worker:
        printed = await ran(create, default_place)
        await ran(delete, default_place)
        assert (await worker.wait_for_log("rejected"))["code"] == "not_found"
    await delete_deployment(default_place)

    assert printed == "accepted in version 1\noutplan_created evenings, twice\n"


async def test_the_servers_are_had_without_pytest_as_the_page_says(deployment: Deployment) -> None:
    (program,) = [it for it in snippets("docs/testing.md") if "def test_" not in it]
    await ran(program, deployment)


async def test_the_tests_on_the_pages_pass(deployment: Deployment, tmp_path: Path) -> None:
    tests = [it for it in snippets("docs/testing.md") if "def test_" in it]
    for number, test in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(test)
    pytest_ = ["-m", "pytest", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    # The servers given here are not to be stopped; in memory there is nothing to be given.
    own = "outplan_own_servers"
    on_servers = await ran_python(deployment, tmp_path, *pytest_, "-m", f"not {own}")
    in_memory = await ran_python(deployment, tmp_path, *pytest_, "-m", own, "--outplan-mode=memory")

    assert f"{len(tests) - 1} passed, 1 deselected" in on_servers
    assert f"1 passed, {len(tests) - 1} deselected" in in_memory

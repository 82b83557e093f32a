"""What README.md and docs/testing.md tell people to run, run."""

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.places import clear
from tests.integration.worker_process import Place, running_worker

ROOT = Path(__file__).parents[2]


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


async def ran(program: str, place: Place) -> str:
    program = program.replace("amqp://guest:guest@localhost:5672/", place.amqp_url)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        env=place.environment(
            OUTPLAN_TEST_AMQP_URL=place.amqp_url, OUTPLAN_TEST_MONGO_URL=place.mongo_url
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture
async def default_place(place: Place) -> Place:
    """The names that the pages use."""
    return replace(place, prefix="outplan")


async def test_the_first_commands_do_what_the_readme_says(default_place: Place) -> None:
    create, delete, *_ = snippets("README.md")
    async with running_worker(default_place) as worker:
        printed = await ran(create, default_place)
        await ran(delete, default_place)
        assert (await worker.logged("rejected"))["code"] == "not_found"
    await clear(default_place)

    assert '"status":"accepted"' in printed
    assert '"type":"outplan_created"' in printed


@pytest.mark.parametrize(("page", "n"), [("README.md", 2), ("docs/testing.md", 0)])
async def test_the_servers_are_had_as_the_pages_say(place: Place, page: str, n: int) -> None:
    await ran(snippets(page)[n], place)

"""Read code blocks from the documentation and run them."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read_code_blocks(page: str, language: str = "python") -> list[str]:
    """Return the fenced code blocks of a page; ``page`` is relative to the repository."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


async def run_program(
    *program: str, folder: Path, environment: Mapping[str, str], seconds: float = 90
) -> str:
    """Run a program in ``folder`` and return its output; fail if it does not exit with 0."""
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()
    return out.decode()

"""Run ``outplan`` to its end in a pipe, or at a terminal."""

import asyncio
import fcntl
import json
import os
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from outplan.testing import Deployment
from tests.support.plain_words import find_foreign_words

_PROGRAM = (sys.executable, "-m", "outplan")


@dataclass(frozen=True)
class Completed:
    """Hold the exit code and the output of a command, which is in plain words."""

    code: int
    out: str
    err: str

    def __post_init__(self) -> None:
        assert not find_foreign_words(self.out + self.err), self.err

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


async def outplan(
    deployment: Deployment, *arguments: str, stdin: bytes = b"", **environment: str
) -> Completed:
    """Run a command in pipes, to its end."""
    async with start(deployment, *arguments, **environment) as process:
        return await finish(process, stdin)


@asynccontextmanager
async def start(
    deployment: Deployment, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command in pipes; kill it at the block's end if it still runs."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, *arguments,
        stdin=pipe, stdout=pipe, stderr=pipe, env=deployment.environment(**environment),
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def finish(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Completed:
    """Give a command the rest of its input, and wait for its end."""
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Completed(process.returncode, out.decode(), err.decode())


class Terminal:
    """Hold the terminal that a command runs in; ``shown`` is everything that it printed."""

    def __init__(self, process: asyncio.subprocess.Process, keys: int) -> None:
        self.process = process
        self._keys = keys
        self.shown = ""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(keys, self._read)

    async def wait_for(self, text: str, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while text not in self.shown:
                self._changed.clear()
                await self._changed.wait()

    def press(self, keys: bytes) -> None:
        os.write(self._keys, keys)

    async def wait(self, seconds: float = 60) -> int:
        """Wait for the command to end, and return its exit code."""
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
        self._read()
        assert not find_foreign_words(self.shown), self.shown
        return code

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._keys)
        os.close(self._keys)

    def _read(self) -> None:
        # Reading fails once the command has closed the other side.
        with suppress(BlockingIOError), suppress(OSError):
            while piece := os.read(self._keys, 65_536):
                self.shown += piece.decode(errors="replace")
                self._changed.set()
            return
        if self.process.returncode is not None:
            asyncio.get_running_loop().remove_reader(self._keys)


@asynccontextmanager
async def terminal(
    deployment: Deployment, *arguments: str, **environment: str
) -> AsyncIterator[Terminal]:
    """Run a command in a terminal of 100 columns; kill it at the block's end."""
    keys, screen = os.openpty()
    os.set_blocking(keys, False)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, *arguments,
        stdin=screen, stdout=screen, stderr=screen,
        env=deployment.environment(**{"TERM": "xterm-256color", **environment}),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(screen)
    found = Terminal(process, keys)
    try:
        yield found
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        found.close()

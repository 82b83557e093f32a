"""Run ``outplan`` commands with their output in a terminal or in a pipe."""

import asyncio
import fcntl
import os
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from outplan.testing import Deployment
from tests.support.plain_words import find_foreign_words

COLUMNS = 120


class CommandProcess:
    """A running command. ``out`` and ``err`` are its output so far."""

    def __init__(
        self, process: asyncio.subprocess.Process, stdout: asyncio.StreamReader | None
    ) -> None:
        self.process = process
        self.out = b""
        self.err = b""
        self._changed = asyncio.Condition()
        self._readers = [asyncio.create_task(self._read("err", process.stderr))]
        if stdout is not None:
            self._readers.append(asyncio.create_task(self._read("out", stdout)))

    async def wait_for_output(self, text: str, times: int = 1, seconds: float = 30) -> None:
        """Wait for text on standard output; fail if the command ends without it."""
        await self._wait_for_text("out", text, times, seconds)

    async def wait_for_error(self, text: str, times: int = 1, seconds: float = 30) -> None:
        """Wait for text on standard error; fail if the command ends without it."""
        await self._wait_for_text("err", text, times, seconds)

    async def wait(self, seconds: float = 30) -> int:
        """Wait for the command to end, and return its exit code."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._readers)
            code = await self.process.wait()
        shown = (self.out + self.err).decode(errors="replace")
        assert not find_foreign_words(shown), shown
        return code

    async def interrupt(self) -> int:
        """Send SIGINT as Ctrl-C does, wait for the end, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return await self.wait()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.wait()

    async def _wait_for_text(self, stream: str, text: str, times: int, seconds: float) -> None:
        def has_text() -> bool:
            printed: bytes = getattr(self, stream)
            return printed.count(text.encode()) >= times

        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: has_text() or all(t.done() for t in self._readers))
        assert has_text(), f"ended without {text!r}: {self.out!r} {self.err!r}"

    async def _read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        with suppress(OSError):  # Reading a closed terminal fails.
            while chunk := await stream.read(1 << 16):
                setattr(self, name, getattr(self, name) + chunk)
                await self._notify()
        asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def run_command(
    deployment: Deployment,
    *arguments: str,
    terminal: bool = False,
    stdout: int | None = None,
    **environment: str,
) -> AbstractAsyncContextManager[CommandProcess]:
    """Run ``outplan`` with its output in a pipe, in a terminal, or in the file ``stdout``."""
    program = [sys.executable, "-m", "outplan", *arguments]
    variables = deployment.environment(**{"TERM": "xterm", **environment})
    # readline, once imported, exports the size of the terminal that runs the tests.
    variables = {k: v for k, v in variables.items() if k not in ("COLUMNS", "LINES")}
    return run_program(program, variables, terminal=terminal, stdout=stdout)


@asynccontextmanager
async def run_program(
    program: Sequence[str],
    environment: Mapping[str, str],
    *,
    terminal: bool = False,
    stdout: int | None = None,
) -> AsyncIterator[CommandProcess]:
    """Run a program, and kill it at the end of the block if it still runs."""
    master, slave = _open_terminal() if terminal else (None, None)
    process = await asyncio.create_subprocess_exec(
        *program,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout or slave or asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if slave is not None:
        os.close(slave)
    command = CommandProcess(
        process, process.stdout if master is None else await _read_terminal(master)
    )
    try:
        yield command
    finally:
        await command.kill()


def _open_terminal() -> tuple[int, int]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    return master, slave


async def _read_terminal(master: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(master, "rb", buffering=0)
    )
    return reader

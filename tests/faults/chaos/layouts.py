"""Change the number of partitions by ``outplan partitions``; kill, abort and repeat the command."""

import asyncio
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Set
from time import monotonic
from typing import Any, Final

from pymongo import AsyncMongoClient

from outplan.testing import Deployment

_MODULE: Final = "tests.faults.chaos.planted"
_NUMBERS: Final = (1, 2, 4, 7, 16)
# The command waits for servers and workers, whatever happens to them; longer than this is stuck.
_CHANGE_SECONDS: Final = 600
# A change takes some seconds in every phase, so that a signal hits any of them.
_SIGNAL_SECONDS: Final = 12
# How long workers still consume queues that go away, before the command deletes them.
_RETIRE_SECONDS: Final = "1"
_SHOWN_OUTPUT: Final = 1_500


class PartitionsCommand:
    """Run one ``outplan partitions`` as a child process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._output = ""
        self._printed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, deployment: Deployment, *arguments: str, planted: str = ""
    ) -> "PartitionsCommand":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _MODULE, "partitions", "--retire", _RETIRE_SECONDS, *arguments,
            env=deployment.environment(PLANTED_FAULT=planted),
            stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        return cls(process)

    async def wait(self, seconds: float) -> bool:
        """Return whether it has ended within that time."""
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        return bool(done)

    async def wait_for_output(self, text: str) -> None:
        """Return once it has printed this text, or has ended."""
        while text not in self._output and not self._reading.done():
            self._printed.clear()
            printing = asyncio.create_task(self._printed.wait())
            await asyncio.wait({printing, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            printing.cancel()

    async def end(self, number: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
        """Send a signal if it runs; return the exit code and the end of its output."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        code = await self._reading
        return code, self._output[-_SHOWN_OUTPUT:]

    async def _read(self) -> int:
        """Collect what it prints; return the exit code."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._output += line.decode(errors="replace")
            self._printed.set()
        return await self._process.wait()


class LayoutChanger:
    """Change the layout of a deployment, one change at a time.

    ``partitions`` is the number in force, or the one that an unfinished change leads to. A change
    begins only with the ``turn`` and ``is_changing`` until it is finished. ``failures`` collects
    what the command may not do.
    """

    def __init__(
        self, deployment: Deployment, rng: random.Random, partitions: int, planted: str = ""
    ) -> None:
        self.partitions = partitions
        self.failures: list[str] = []
        self.is_changing = False
        self.turn = asyncio.Lock()
        self._deployment = deployment
        self._rng = rng
        self._planted = planted
        self._former = partitions
        self._command: PartitionsCommand | None = None

    async def change(self) -> tuple[str, str]:
        """Change to a random number, or continue a change that was left; return name and detail."""
        async with self.turn:
            return await self._change()

    async def change_to(self, partitions: int) -> None:
        """Change to this number."""
        self.partitions = partitions
        self.is_changing = True
        await self.finish()

    async def finish(self) -> None:
        """Bring the change to its end, if there is one."""
        if self.is_changing:
            command = await self._start(str(self.partitions))
            name = f"outplan partitions {self.partitions}"
            self.is_changing = not await self._require_success(command, name)

    async def kill(self) -> None:
        """Kill the command if it still runs."""
        if self._command is not None:
            await self._command.end()

    async def find_unsteady(self, queues: Set[str]) -> list[str]:
        """Return how MongoDB and the existing ``queues`` differ from a finished change."""
        main = f"{self._deployment.prefix}.commands"
        numbered = {f"{main}.{n}" for n in range(self.partitions if self.partitions > 1 else 0)}
        found = []
        if queues != {main, *numbered}:
            found.append(f"{self.partitions} partitions, but the queues {sorted(queues)}")
        async with AsyncMongoClient[dict[str, Any]](self._deployment.mongo_url) as mongo:
            layouts = mongo[self._deployment.database]["outplan_layouts"]
            stored = await layouts.find_one({"_id": self._deployment.prefix}) or {}
        if (stored.get("phase"), stored.get("partitions")) != ("steady", self.partitions):
            found.append(f"{self.partitions} partitions, but the stored layout {stored}")
        return found

    async def _change(self) -> tuple[str, str]:
        since = monotonic()
        if self.is_changing:
            name, act = "layout change continued", self.finish
        else:
            self._former = self.partitions
            self.partitions = self._rng.choice([n for n in _NUMBERS if n != self._former])
            self.is_changing = True
            name, act = self._rng.choice(
                [
                    ("layout changed", self.finish),
                    ("layout change killed and repeated", self._kill_and_repeat),
                    ("layout change killed and left", self._kill),
                    ("layout change aborted", self._abort),
                ]
            )
        former, aim = self._former, self.partitions
        await act()
        detail = f"{former} to {aim}, {monotonic() - since:.1f} s"
        return name, detail if self.partitions == aim else f"{detail}, back to {self.partitions}"

    async def _kill(self) -> None:
        """Start the change and end the command soon; it may be done by then."""
        command = await self._start(str(self.partitions))
        await command.wait(self._rng.uniform(0, _SIGNAL_SECONDS))
        number = self._rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        code, output = await command.end(number)
        if code not in (0, -number, 128 + number):
            self.failures.append(f"ended by {number.name}, exit code {code}: {output}")

    async def _kill_and_repeat(self) -> None:
        await self._kill()
        while self._rng.random() < 0.3:
            await self._kill()
        await self.finish()

    async def _abort(self) -> None:
        """Kill the command in its first phase, abort the change; finish it if that is too late."""
        command = await self._start(str(self.partitions))
        # From one partition, the first phase is one that nothing leads back from.
        await command.wait_for_output("divert: letting" if self._former > 1 else "replay: letting")
        await command.wait(self._rng.uniform(0, 1))
        await command.end()
        command = await self._start("--abort")
        if not await command.wait(_CHANGE_SECONDS):
            _, output = await command.end()
            self.failures.append(f"--abort did not end in {_CHANGE_SECONDS} s: {output}")
            return
        code, output = await command.end()
        if code == 0:
            self.partitions = self._former
            self.is_changing = False
        elif output.strip():
            await self.finish()
        else:
            self.failures.append(f"--abort gave no reason for exit code {code}")

    async def _require_success(self, command: PartitionsCommand, name: str) -> bool:
        ended = await command.wait(_CHANGE_SECONDS)
        code, output = await command.end()
        if not ended:
            self.failures.append(f"{name} did not end in {_CHANGE_SECONDS} s: {output}")
        elif code != 0:
            self.failures.append(f"{name}, exit code {code}: {output}")
        return ended and code == 0

    async def _start(self, *arguments: str) -> PartitionsCommand:
        self._command = await PartitionsCommand.start(
            self._deployment, *arguments, planted=self._planted
        )
        return self._command

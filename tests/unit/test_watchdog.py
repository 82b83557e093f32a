"""The watchdog ends a process whose event loop hangs, and no other."""

import subprocess
import sys
from textwrap import dedent

# Holds the interpreter's lock far longer than any test waits.
ENDLESS = 're.match(r"(a+)+$", "a" * 100 + "b")'


def run_watched(seconds: float, what: str) -> "subprocess.CompletedProcess[str]":
    program = f"""
        import asyncio, re, time
        from outplan.worker.watchdog import watchdog

        async def main():
            async with watchdog({seconds}):
                {what}
            time.sleep(1)
            print("done")

        asyncio.run(main())
        """
    return subprocess.run(
        [sys.executable, "-c", dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_hanging_loop_ends_the_process_with_a_traceback() -> None:
    ended = run_watched(0.5, f"await asyncio.sleep(0); {ENDLESS}")

    assert ended.returncode == 1
    assert "done" not in ended.stdout
    assert "in match" in ended.stderr


def test_a_running_loop_goes_on_and_may_hang_after_the_block() -> None:
    ended = run_watched(0.5, "await asyncio.sleep(1.5)")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_without_a_limit_a_loop_may_hang() -> None:
    ended = run_watched(0, "await asyncio.sleep(0); time.sleep(1)")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")

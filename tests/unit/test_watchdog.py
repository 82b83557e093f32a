"""What stands still is ended, here in a process of its own; what moves, or may stand, is not."""

import subprocess
import sys
from textwrap import dedent

# Holds the interpreter's lock for much longer than any test would wait.
ENDLESS = 're.match(r"(a+)+$", "a" * 100 + "b")'


def watching(seconds: float, what: str) -> "subprocess.CompletedProcess[str]":
    program = f"""
        import asyncio, re, time
        from outplan.worker.watchdog import watched

        async def main():
            async with watched({seconds}):
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


def test_a_loop_that_stands_still_ends_the_process_and_says_where_it_stood() -> None:
    ended = watching(0.5, f"await asyncio.sleep(0); {ENDLESS}")

    assert ended.returncode == 1
    assert "done" not in ended.stdout
    assert "in match" in ended.stderr


def test_a_loop_that_moves_goes_on_and_is_free_after_the_block() -> None:
    ended = watching(0.5, "await asyncio.sleep(1.5)")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_without_a_limit_it_may_stand_still() -> None:
    ended = watching(0, "await asyncio.sleep(0); time.sleep(1)")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")

"""Supervise child processes so that they die with this process, however it ends.

This file is also a program. It is run by its path and uses the standard library alone. Its
standard input is a pipe from the parent: end of file means that the parent is gone, by a clean
exit or by SIGKILL.

``supervisor.py guard JSON...``     start the commands, each a JSON list, as one process group; the
                                    last is the server. Print its process id, then obey orders.
                                    At end of file kill the group.
``supervisor.py on-death COMMAND``  at end of file run the command.

An order is a line ``server SIGTERM`` or ``group SIGSTOP``, answered by a line when it is done.
"""

import ctypes
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PROGRAM = (sys.executable, "-I", "-S", str(Path(__file__).resolve()))
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_SIGNALLED = 128  # a shell's exit code for a signal is this plus its number
_STOP_SECONDS = 60.0
_TRIES = 10


@contextmanager
def run_on_death(*command: str) -> Iterator[int]:
    """Run `command` when the block or this process ends, whatever ends it.

    Yields a file descriptor. A child that inherits it delays the command until the child has
    exited as well.
    """
    read, write = os.pipe()
    supervisor = subprocess.Popen(  # noqa: S603 - callers pass fixed commands
        [*_PROGRAM, "on-death", *command], stdin=read, start_new_session=True
    )
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)
        supervisor.wait(_STOP_SECONDS)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[tuple[Path, int]]:
    """Yield a new private folder and the descriptor of the `run_on_death` that removes it."""
    folder = Path(tempfile.gettempdir(), f"outplan-{purpose}-{secrets.token_hex(8)}")
    with run_on_death("rm", "-rf", str(folder)) as death_fd:
        folder.mkdir(mode=0o700)
        yield folder, death_fd


class ProcessGroup:
    """Run commands as one process group under a supervisor; the last command is the server.

    The group ends when this process ends. It runs in ``folder`` and prints to ``output.log``
    there. ``death_fd`` comes from `run_on_death`, whose command waits for the group's end.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        death_fd: int,
    ) -> None:
        self.output = folder / "output.log"
        self._commands = [json.dumps(command) for command in commands]
        self._environment = environment
        self._folder = folder
        self._death_fd = death_fd
        self._supervisor: subprocess.Popen[str] | None = None
        self.pid: int | None = None

    @property
    def exit_code(self) -> int | None:
        """Return the server's exit code, minus the number for a signal; None while it runs."""
        code = None if self._supervisor is None else self._supervisor.poll()
        return code if code is None or code < _SIGNALLED else _SIGNALLED - code

    def launch(self) -> None:
        if not self.resume():
            self.kill()
            self._start_supervisor()

    def terminate(self) -> bool:
        self.resume()
        self.send_signal("SIGTERM")
        in_time = self.wait(_STOP_SECONDS)
        self.kill()
        return in_time

    def kill(self) -> None:
        if self._supervisor and self._supervisor.stdin and not self._supervisor.stdin.closed:
            # Closing the pipe is not enough if this process was forked since: a fork holds it too.
            self._order("group SIGKILL")
            self._supervisor.communicate()

    def pause(self) -> bool:
        return self._order("group SIGSTOP")

    def resume(self) -> bool:
        return self._order("group SIGCONT")

    def send_signal(self, name: str) -> bool:
        """Send the server a signal, such as SIGTERM. Return false if it is not running."""
        return self._order(f"server {name}")

    def wait(self, seconds: float) -> bool:
        try:
            return self._supervisor is None or self._supervisor.wait(seconds) is not None
        except subprocess.TimeoutExpired:
            return False

    def log(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-20:])

    def _start_supervisor(self) -> None:
        with self.output.open("ab") as output:
            self._supervisor = subprocess.Popen(  # noqa: S603 - callers pass fixed commands
                [*_PROGRAM, "guard", *self._commands],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                cwd=self._folder,
                env=self._environment,
                pass_fds=(self._death_fd,),
                start_new_session=True,  # else Ctrl-C would end the servers before the tests
            )
        assert self._supervisor.stdout is not None
        pid = self._supervisor.stdout.readline()
        self.pid = int(pid) if pid else None

    def _order(self, order: str) -> bool:
        if not (self._supervisor and self._supervisor.stdin and self._supervisor.stdout):
            return False
        if self._supervisor.stdin.closed:
            return False
        try:
            print(order, file=self._supervisor.stdin, flush=True)
        except BrokenPipeError:
            return False
        return self._supervisor.stdout.readline() != ""


def main(arguments: Sequence[str]) -> int:
    """Run the mode that the first argument names and return the exit code."""
    mode, *rest = arguments
    if mode == "guard":
        return _guard([json.loads(command) for command in rest])
    return _run_at_end_of_file(rest)


def _run_at_end_of_file(command: Sequence[str]) -> int:
    sys.stdin.buffer.read()
    for _ in range(_TRIES):
        # Processes that were just killed may still hold the files that the command removes.
        code = subprocess.run(  # noqa: S603 - callers pass fixed commands
            command, check=False, capture_output=True
        ).returncode
        if code == 0:
            break
        time.sleep(0.2)
    return code


def _guard(commands: Sequence[Sequence[str]]) -> int:
    children: list[subprocess.Popen[bytes]] = []
    for command in commands:
        children.append(_start(command, children[0].pid if children else 0))
    leader, server = children[0].pid, children[-1]
    os.write(1, b"%d\n" % server.pid)
    threading.Thread(target=_obey, args=(leader, server.pid), daemon=True).start()
    code = server.wait()
    _send(-leader, signal.SIGKILL)
    for child in children:
        child.wait()
    return code if code >= 0 else _SIGNALLED - code


def _start(command: Sequence[str], group: int) -> subprocess.Popen[bytes]:
    # This program answers orders on its standard output, so the servers print to its other one.
    return subprocess.Popen(  # noqa: S603 - callers pass fixed commands
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        process_group=group,
        preexec_fn=_bind_to_parent(os.getpid()),  # noqa: PLW1509 - no thread runs yet
    )


def _bind_to_parent(parent: int) -> Callable[[], None] | None:
    """Return a function for a child to call so that even SIGKILL of its parent ends it."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def _obey(leader: int, server: int) -> None:
    # Unbuffered: a buffered reader's lock, held by this thread, would abort the interpreter's exit.
    with io.FileIO(0, closefd=False) as orders:
        for order in orders:
            target, name = order.decode().split()
            _send(-leader if target == "group" else server, signal.Signals[name])
            os.write(1, b"done\n")
    _send(-leader, signal.SIGKILL)


def _send(target: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(target, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

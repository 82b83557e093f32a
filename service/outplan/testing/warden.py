"""A supervisor that ends a server when its parent ends, however that happens.

Run by file path, with the standard library alone. Its standard input is a pipe from the parent:
the end of that file is the parent's end, be it a clean exit or a SIGKILL.

``warden.py guard JSON...``   start the commands, each a JSON list, as one process group; the last
                              is the server. Obey orders; at the end of the file kill the group.
``warden.py will COMMAND...`` at the end of the file run the command, and do nothing before.

An order is a line ``server SIGTERM`` or ``group SIGSTOP``, answered by a line when it is done.
"""

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PROGRAM = (sys.executable, "-I", "-S", str(Path(__file__).resolve()))
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_STOP_SECONDS = 60.0
_TRIES = 10


@contextmanager
def last_will(*command: str) -> Iterator[int]:
    """Have `command` run as soon as nobody holds the yielded file descriptor any more.

    This process holds it until the block ends or the process does, whatever ends it. A child
    that was passed the descriptor puts the will off until that child is gone as well.
    """
    read, write = os.pipe()
    will = subprocess.Popen(  # noqa: S603 - the commands are the callers' own
        [*_PROGRAM, "will", *command], stdin=read, start_new_session=True
    )
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)
        will.wait(_STOP_SECONDS)


class ProcessGroup:
    """Commands in one process group under a warden, the last being the server.

    They end when this process ends, and the warden holds `will` until they have. What they
    print goes to a file in `folder`, where they run.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        will: int,
    ) -> None:
        self._commands = [json.dumps(command) for command in commands]
        self._environment = environment
        self._folder = folder
        self._output = folder / "output.log"
        self._will = will
        self._warden: subprocess.Popen[str] | None = None

    def launch(self) -> None:
        if not self.thaw():
            self.kill()
            self._start_warden()

    def terminate(self) -> bool:
        self.thaw()
        self._tell("server SIGTERM")
        in_time = self.ended(_STOP_SECONDS)
        self.kill()
        return in_time

    def kill(self) -> None:
        if self._warden:
            # To close its pipe would be enough, had nobody forked this process in the meantime.
            self._tell("group SIGKILL")
            self._warden.communicate()
            self._warden = None

    def freeze(self) -> bool:
        return self._tell("group SIGSTOP")

    def thaw(self) -> bool:
        return self._tell("group SIGCONT")

    def ended(self, within: float) -> bool:
        try:
            return self._warden is None or self._warden.wait(within) is not None
        except subprocess.TimeoutExpired:
            return False

    def log(self) -> str:
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-20:])

    def _start_warden(self) -> None:
        with self._output.open("ab") as output:
            self._warden = subprocess.Popen(  # noqa: S603 - the commands are the callers' own
                [*_PROGRAM, "guard", *self._commands],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                cwd=self._folder,
                env=self._environment,
                pass_fds=(self._will,),
                start_new_session=True,  # else Ctrl-C would end the servers before the tests
            )

    def _tell(self, order: str) -> bool:
        if not (self._warden and self._warden.stdin and self._warden.stdout):
            return False
        try:
            print(order, file=self._warden.stdin, flush=True)
        except BrokenPipeError:
            return False
        return self._warden.stdout.readline() != ""


def main(arguments: Sequence[str]) -> int:
    """Do the duty that the first argument names, and return the exit code."""
    duty, *rest = arguments
    return _guard([json.loads(command) for command in rest]) if duty == "guard" else _will(rest)


def _will(command: Sequence[str]) -> int:
    sys.stdin.buffer.read()
    for _ in range(_TRIES):
        # Processes that were killed a moment ago may still hold what is to be removed.
        code = subprocess.run(  # noqa: S603 - the command is the parent's own
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
    threading.Thread(target=_obey, args=(leader, server.pid), daemon=True).start()
    code = server.wait()
    _send(-leader, signal.SIGKILL)
    for child in children:
        child.wait()
    return code if code >= 0 else 128 - code


def _start(command: Sequence[str], group: int) -> subprocess.Popen[bytes]:
    # The standard output answers the orders, so whatever the servers say goes to the other one.
    return subprocess.Popen(  # noqa: S603 - the commands are the parent's own
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        process_group=group,
        preexec_fn=_bound_to(os.getpid()),  # noqa: PLW1509 - no thread has been started yet
    )


def _bound_to(warden: int) -> Callable[[], None] | None:
    """Make a child die with the warden, where the kernel can: even SIGKILL leaves no server."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != warden:
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def _obey(leader: int, server: int) -> None:
    # Unbuffered: a buffered reader's lock, held by this thread, would abort the interpreter's exit.
    with io.FileIO(0, closefd=False) as orders:
        for order in orders:
            whom, name = order.decode().split()
            _send(-leader if whom == "group" else server, signal.Signals[name])
            os.write(1, b"done\n")
    _send(-leader, signal.SIGKILL)


def _send(target: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(target, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

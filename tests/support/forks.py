"""Call functions in a forked child of the test process."""

import os
import signal
import warnings
from collections.abc import Callable

_SECONDS = 20


def call_in_fork(function: Callable[[], object]) -> str:
    """Return the type and the text of what the function raises in a child; "" if nothing."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads in the parent, which these tests want.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS)
        raised = ""
        try:
            function()
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, raised.encode())
            # Without the parent's exit handlers and finally blocks.
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        raised = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the child hung"
    return raised

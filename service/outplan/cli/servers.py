"""``outplan demo`` and ``outplan sandbox``: on servers of their own."""

from outplan.cli.outcome import failure


def demo() -> None:
    """Show what becomes of five commands, on servers and a worker of the demo's own."""
    # No other command has need of these modules, nor of the extra that they come with.
    from outplan.testing.demo import DemoFailed, play  # noqa: PLC0415
    from outplan.testing.errors import ServersUnavailable, WorkerFailed  # noqa: PLC0415

    try:
        play()
    except (DemoFailed, ServersUnavailable, WorkerFailed) as error:
        raise failure(error) from None


def sandbox() -> None:
    """Keep servers and a worker of the sandbox's own up, to try out, until Ctrl-C."""
    from outplan.testing.errors import ServersUnavailable, WorkerFailed  # noqa: PLC0415
    from outplan.testing.sandbox import stay  # noqa: PLC0415

    try:
        stay()
    except (ServersUnavailable, WorkerFailed) as error:
        raise failure(error) from None

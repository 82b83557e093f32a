"""``python -m tests.integration.slow_clock_worker run``: a worker whose clock is an hour behind."""

from datetime import UTC, datetime, timedelta

from outplan import bootstrap
from outplan.cli.app import main


def an_hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


if __name__ == "__main__":
    setattr(bootstrap, "utc_now", an_hour_ago)  # noqa: B010  it has it by import
    main()

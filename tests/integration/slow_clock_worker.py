"""``python -m tests.integration.slow_clock_worker run``: a worker whose clock is an hour behind."""

from datetime import UTC, datetime, timedelta

from outplan import bootstrap
from outplan.cli import app
from outplan.domain.decider import text_time


def an_hour_ago() -> str:
    return text_time(datetime.now(UTC) - timedelta(hours=1))


if __name__ == "__main__":
    bootstrap.utc_now = an_hour_ago
    app(prog_name="outplan")

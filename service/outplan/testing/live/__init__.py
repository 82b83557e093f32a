"""Run a worker process on real servers for one test."""

from outplan.testing.live.backend import LiveService, live_service
from outplan.testing.live.rejected import read_rejected
from outplan.testing.live.worker import WorkerProcess, open_worker

__all__ = ["LiveService", "WorkerProcess", "live_service", "open_worker", "read_rejected"]

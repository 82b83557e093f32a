"""Run a worker process on real servers for one test."""

from outplan.testing.live.backend import LiveService, live_service

__all__ = ["LiveService", "live_service"]

"""Run the service in memory, for unit tests of the code around it."""

from outplan.testing.memory.backend import memory_service

__all__ = ["memory_service"]

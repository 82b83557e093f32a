"""Propagate the current OpenTelemetry trace to commands."""

import sys


def trace_headers() -> dict[str, str]:
    """Return ``traceparent`` and ``tracestate`` of the current span; nothing without one."""
    # A span exists only where the application has imported OpenTelemetry.
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier

"""The trace that a command belongs to, where OpenTelemetry is installed."""

try:
    from opentelemetry.trace.propagation import tracecontext
except ImportError:  # Tracing is the caller's to have.

    def trace_headers() -> dict[str, str]:
        """No headers: nobody traces."""
        return {}
else:
    _PROPAGATOR = tracecontext.TraceContextTextMapPropagator()

    def trace_headers() -> dict[str, str]:
        """``traceparent`` and ``tracestate`` of the current span; nothing outside of one."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier

"""For programs that speak to the service; it needs no MongoDB."""

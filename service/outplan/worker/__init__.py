"""The worker: deliveries in, outcomes out, and what an operator sees of it."""

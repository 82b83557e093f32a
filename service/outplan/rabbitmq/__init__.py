"""RabbitMQ: connections, frames, sessions and confirms."""

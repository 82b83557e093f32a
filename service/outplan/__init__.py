"""The outplan service: commands in from RabbitMQ, documents to MongoDB, events out."""

"""What both sides share: field types, messages, schemas and the topology."""

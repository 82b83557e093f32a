"""The contract that worker and client share: fields, messages, schemas, topology."""

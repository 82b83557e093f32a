"""MongoDB: transactions, documents, validators and inspection."""

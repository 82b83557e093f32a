"""``outplan watch``: events as they come."""

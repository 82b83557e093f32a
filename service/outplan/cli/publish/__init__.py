"""``outplan publish``: one command, and what became of it."""

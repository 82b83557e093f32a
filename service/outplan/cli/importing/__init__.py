"""``outplan import``: many commands or documents from a file."""

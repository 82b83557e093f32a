"""The rules, without I/O: what a command does to an outplan."""

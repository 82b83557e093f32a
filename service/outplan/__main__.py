"""``python -m outplan`` is ``outplan``."""

from outplan.cli import app

app(prog_name="outplan")

"""``python -m service`` is ``outplan``."""

from service.cli import app

app(prog_name="outplan")

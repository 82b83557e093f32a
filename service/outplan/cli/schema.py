"""Print the contract's JSON Schemas: ``outplan schema``."""

import json
from difflib import get_close_matches
from typing import Final

import typer

from outplan.contract.schemas import list_schema_names, read_schema_text

_PREFIX: Final = "outplan_"


def list_schemas() -> None:
    """Print a line for each schema: its name and the first sentence of its description."""
    for name in list_schema_names():
        description: str = json.loads(read_schema_text(name))["description"]
        typer.echo(f"{name:<16}  {description.partition('. ')[0].removesuffix('.')}")


def print_schema(name: str) -> None:
    """Print a schema as its file is. Raises typer.BadParameter for an unknown name."""
    typer.echo(read_schema_text(_find(name)), nl=False)


def _find(name: str) -> str:
    names = list_schema_names()
    stem = name.lower().removesuffix(".json").replace("-", "_")
    for full in (stem, _PREFIX + stem):
        if full in names:
            return full
    known = {*names, *(full.removeprefix(_PREFIX) for full in names)}
    near = get_close_matches(stem, sorted(known), n=2)
    remedy = f"Did you mean {' or '.join(near)}?" if near else "'outplan schema' lists them."
    raise typer.BadParameter(f"There is no schema {name!r}. {remedy}", param_hint="NAME")

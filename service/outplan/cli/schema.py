"""``outplan schema``: the contract's JSON Schemas."""

import json
from difflib import get_close_matches
from typing import Annotated, Final

import typer

_PREFIX: Final = "outplan_"


def _completions() -> list[str]:
    from outplan.contract.schemas import schema_names  # noqa: PLC0415

    return list(schema_names())


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Which to print. 'create' is short for 'outplan_create', and so on.",
            autocompletion=_completions,
        ),
    ] = None,
) -> None:
    """List the contract's JSON Schemas, or print one of them."""
    from outplan.contract.schemas import schema_names, schema_text  # noqa: PLC0415

    names = schema_names()
    if name is None:
        for each in names:
            typer.echo(f"{each:<16}  {_first_sentence(schema_text(each))}")
    else:
        typer.echo(schema_text(_full(name, names)), nl=False)


def _full(name: str, names: tuple[str, ...]) -> str:
    stem = name.lower().removesuffix(".json").replace("-", "_")
    for full in (stem, _PREFIX + stem):
        if full in names:
            return full
    known = {*names, *(full.removeprefix(_PREFIX) for full in names)}
    near = get_close_matches(stem, sorted(known), n=2)
    remedy = f"Did you mean {' or '.join(near)}?" if near else "'outplan schema' lists them."
    raise typer.BadParameter(f"There is no schema {name!r}. {remedy}", param_hint="NAME")


def _first_sentence(schema: bytes) -> str:
    description: str = json.loads(schema)["description"]
    return description.partition(". ")[0].removesuffix(".")

"""Load the schema files and their examples, and name the model of each message."""

import json
from pathlib import Path
from typing import Any, Final, get_args

import jsonschema
from pydantic import BaseModel, RootModel
from referencing import Registry, Resource

from outplan.contract import schemas
from outplan.contract.messages import (
    COMMANDS,
    Event,
    EventType,
    NewAddress,
    Outplan,
    Problem,
    Reply,
)

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"
EXAMPLES: Final = SCHEMAS / "examples"
FILES: Final = {
    name: json.loads(schemas.read_schema_text(name)) for name in schemas.list_schema_names()
}
MODELS: Final[dict[str, type[BaseModel]]] = {
    "address": RootModel[NewAddress],
    "outplan": Outplan,
    **COMMANDS,
    **dict.fromkeys(get_args(EventType), Event),
    "problem": Problem,
    "reply": Reply,
}
DRAFT_2020_12: Final = "https://json-schema.org/draft/2020-12/schema"
DRAFT_07: Final = "http://json-schema.org/draft-07/schema#"


def python_validator(
    name: str,
    dialect: type[Any] = jsonschema.Draft202012Validator,
    uri: str = DRAFT_2020_12,
) -> Any:
    """Compile a schema file with the jsonschema package, read as the dialect ``uri``."""
    files = [{**schema, "$schema": uri} for schema in FILES.values()]
    registry = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in files
    )
    return dialect({**FILES[name], "$schema": uri}, registry=registry)

"""Read settings from the environment (contract, section 8). Nothing is read at import."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from outplan.errors import WrongSetting
from outplan.urls import PREFIX_PATTERN, check_amqp_url

ENV_PREFIX = "OUTPLAN_"


def _mongo_scheme(url: str) -> str:
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError("should start with mongodb:// or mongodb+srv://")
    return url


def _never_or_in_time(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError("should be 0, or at least 1: a healthy batch may take a while")
    return seconds


class Settings(BaseSettings):
    """A worker's settings; the variable of a field is ``OUTPLAN_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    amqp_url: Annotated[str, AfterValidator(check_amqp_url)] = "amqp://guest:guest@localhost:5672/"
    mongo_url: Annotated[str, AfterValidator(_mongo_scheme)] = (
        "mongodb://localhost:27017/?replicaSet=rs0"
    )
    mongo_database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")] = "outplan"
    mongo_driver: Literal["motor", "pymongo"] = "motor"
    prefix: Annotated[str, StringConstraints(pattern=PREFIX_PATTERN)] = "outplan"
    partitions: Annotated[int, Field(ge=1, le=256)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000)] = 500
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    log_format: Literal["json", "console", "auto"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_seconds: Annotated[float, Field(gt=0, le=3_600)] = 25
    hang_seconds: Annotated[float, Field(ge=0, le=3_600), AfterValidator(_never_or_in_time)] = 30


def load_settings() -> Settings:
    """Read the environment. Raises WrongSetting, which names every wrong variable in one line."""
    try:
        return Settings()
    except ValidationError as error:
        complaints = (
            f"{variable(field)}: {text}" for field, text in describe_errors(error).items()
        )
        raise WrongSetting("; ".join(complaints)) from None


def load_usable_settings() -> tuple[Settings, dict[str, str]]:
    """Read the environment, with defaults for wrong variables; also return the errors by field."""
    try:
        return Settings(), {}
    except ValidationError as error:
        wrong = describe_errors(error)
    defaults = {field: Settings.model_fields[field].default for field in wrong}
    return Settings(**defaults), wrong


def variable(field: str) -> str:
    """Return the name of a field's variable."""
    return f"{ENV_PREFIX}{field.upper()}"


def find_unknown_variables() -> tuple[str, ...]:
    """List the OUTPLAN_ variables that no setting reads; most are misspelt."""
    known = {variable(field) for field in Settings.model_fields}
    return tuple(
        name
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX) and name not in known and "_TEST_" not in name
    )


def describe_errors(error: ValidationError) -> dict[str, str]:
    """Return a validation error's texts by field, without the values."""
    # A URL may contain a password.
    return {
        str(item["loc"][0]): item["msg"].removeprefix("Value error, ")
        for item in error.errors(include_url=False, include_input=False)
    }

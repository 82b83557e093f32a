"""Read settings from the environment (contract, section 8). Nothing is read at import."""

import os
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from outplan.errors import WrongSetting
from outplan.urls import PREFIX_PATTERN, check_amqp_url, check_http_url, check_mongo_url

ENV_PREFIX: Final = "OUTPLAN_"


def _check_hang_seconds(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError("should be 0, or at least 1: a healthy batch may take a while")
    return seconds


def _check_management_url(url: str | None) -> str | None:
    return None if url is None else check_http_url(url)


class Settings(BaseSettings):
    """A worker's settings; the variable of a field is ``OUTPLAN_<FIELD>``.

    White space around a value does not count, and an empty variable is an unset one. A field's
    description says which values it takes.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    amqp_url: Annotated[str, AfterValidator(check_amqp_url)] = "amqp://guest:guest@localhost:5672/"
    mongo_url: Annotated[str, AfterValidator(check_mongo_url)] = (
        "mongodb://localhost:27017/?replicaSet=rs0"
    )
    mongo_database: str = Field(
        "outplan", pattern=r"^[A-Za-z0-9_-]{1,63}$",
        description="1 to 63 letters, digits, dashes or underscores",
    )  # fmt: skip
    mongo_driver: Literal["motor", "pymongo"] = Field("motor", description="motor or pymongo")
    prefix: str = Field(
        "outplan", pattern=PREFIX_PATTERN,
        description="1 to 100 letters, digits, dots, dashes or underscores",
    )  # fmt: skip
    partitions: int | None = Field(
        None, ge=1, le=256, description="a whole number from 1 to 256, or unset"
    )
    batch_size: int = Field(500, ge=1, le=1_000, description="a whole number from 1 to 1000")
    management_url: Annotated[str | None, AfterValidator(_check_management_url)] = None
    http_port: int = Field(8080, ge=0, le=65_535, description="a port from 1 to 65535, or 0")
    log_format: Literal["json", "console", "auto"] = Field(
        "auto", description="json, console or auto"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error"
    )
    drain_seconds: float = Field(
        25, gt=0, le=3_600, description="a number of seconds, more than 0 and at most 3600"
    )
    hang_seconds: Annotated[float, AfterValidator(_check_hang_seconds)] = Field(
        30, ge=0, le=3_600, description="a number of seconds from 1 to 3600, or 0"
    )

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Strip texts, leave out the empty ones, and take the words of an enumeration in any case.

        A file with a secret often ends in a line break.
        """
        tidy = {k: v.strip() if isinstance(v, str) else v for k, v in values.items()}
        for field in ("mongo_driver", "log_format", "log_level"):
            if isinstance(tidy.get(field), str):
                tidy[field] = tidy[field].lower()
        return {field: value for field, value in tidy.items() if value != ""}


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
    """Return what each wrong field should be, without its value: a URL may hold a password."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        field = str(item["loc"][0])
        if item["type"] == "value_error":
            found[field] = str(item["ctx"]["error"])
        else:
            found[field] = f"should be {Settings.model_fields[field].description}"
    return found

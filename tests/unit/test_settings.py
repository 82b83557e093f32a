"""Every variable: its default, its values, and one clear line for a wrong one."""

import os
from typing import Any

import pytest
from pydantic import ValidationError

from outplan.errors import WrongSetting
from outplan.mongodb.store import MongoStore
from outplan.settings import ENV_PREFIX, Settings, find_unknown_variables, load_settings
from outplan.urls import check_amqp_url, check_mongo_url


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


DEFAULTS: dict[str, Any] = {
    "amqp_url": "amqp://guest:guest@localhost:5672/",
    "mongo_url": "mongodb://localhost:27017/?replicaSet=rs0",
    "mongo_database": "outplan",
    "mongo_driver": "motor",
    "prefix": "outplan",
    "partitions": None,
    "batch_size": 500,
    "management_url": None,
    "http_port": 8080,
    "log_format": "auto",
    "log_level": "info",
    "drain_seconds": 25.0,
    "hang_seconds": 30.0,
}

RIGHT: list[tuple[str, str, Any]] = [
    ("amqp_url", "amqps://u:p@broker:5671/vhost", "amqps://u:p@broker:5671/vhost"),
    ("mongo_url", "mongodb+srv://cluster.example/", "mongodb+srv://cluster.example/"),
    ("mongo_database", "a-b_C9", "a-b_C9"),
    ("mongo_driver", "pymongo", "pymongo"),
    ("prefix", "team.a_b-9", "team.a_b-9"),
    ("prefix", "x" * 100, "x" * 100),
    ("partitions", "1", 1),
    ("partitions", "256", 256),
    ("batch_size", "1", 1),
    ("batch_size", "1000", 1_000),
    ("management_url", "https://u:p@broker:15671", "https://u:p@broker:15671"),
    ("http_port", "0", 0),
    ("http_port", "65535", 65_535),
    ("log_format", "json", "json"),
    ("log_format", "console", "console"),
    ("log_level", "debug", "debug"),
    ("log_level", "error", "error"),
    ("log_level", "INFO", "info"),
    ("log_level", "Warning", "warning"),
    ("log_format", "JSON", "json"),
    ("mongo_driver", "PyMongo", "pymongo"),
    ("drain_seconds", "0.5", 0.5),
    ("drain_seconds", "3600", 3_600.0),
    ("hang_seconds", "0", 0.0),
    ("hang_seconds", "1", 1.0),
    ("hang_seconds", "3600", 3_600.0),
]

WRONG: list[tuple[str, str]] = [
    ("amqp_url", "http://localhost/"),
    ("amqp_url", "localhost:5672"),
    ("amqp_url", "amqp://me:pass#word@broker/"),
    ("amqp_url", "amqp://me:12/34@broker/"),
    ("amqp_url", "amqp://broker:0/"),
    ("amqp_url", "amqp://broker:99999/"),
    ("amqp_url", "amqp://bro ker/"),
    ("amqp_url", "amqp:///vhost"),
    ("mongo_url", "mongodb://server:99999/"),
    ("mongo_url", "mongodb://one:27017,two:port/"),
    ("mongo_url", "mongodb://"),
    ("mongo_url", "mongo://localhost"),
    ("mongo_database", "a.b"),
    ("mongo_database", "a b"),
    ("mongo_database", "x" * 64),
    ("mongo_driver", "sync"),
    ("prefix", "a b"),
    ("prefix", "x" * 101),
    ("prefix", "a#"),
    ("partitions", "0"),
    ("partitions", "257"),
    ("partitions", "two"),
    ("partitions", "1.5"),
    ("batch_size", "0"),
    ("batch_size", "1001"),
    ("management_url", "amqp://localhost"),
    ("management_url", "http://broker:99999"),
    ("http_port", "-1"),
    ("http_port", "65536"),
    ("log_format", "xml"),
    ("log_level", "loud"),
    ("drain_seconds", "0"),
    ("drain_seconds", "-1"),
    ("drain_seconds", "3601"),
    ("drain_seconds", "nan"),
    ("drain_seconds", "inf"),
    ("hang_seconds", "-1"),
    ("hang_seconds", "0.9"),
    ("hang_seconds", "3601"),
    ("hang_seconds", "nan"),
]


def variable(field: str) -> str:
    return f"OUTPLAN_{field.upper()}"


def test_defaults() -> None:
    assert load_settings().model_dump() == DEFAULTS


def test_every_field_is_tested_here() -> None:
    assert Settings.model_fields.keys() == DEFAULTS.keys()
    assert Settings.model_fields.keys() == {field for field, _, _ in RIGHT}
    assert Settings.model_fields.keys() == {field for field, _ in WRONG}


@pytest.mark.parametrize(("field", "text", "value"), RIGHT)
def test_a_variable_is_read(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: Any
) -> None:
    monkeypatch.setenv(variable(field), text)
    assert load_settings().model_dump() == {**DEFAULTS, field: value}


@pytest.mark.parametrize(("field", "text"), WRONG)
def test_a_wrong_variable_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(WrongSetting) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith(f"{variable(field)}: ")
    assert len(line.splitlines()) == 1
    assert len(line) < 200
    assert caught.value.exit_code == 2


# What a library calls things, which says nothing to an operator.
FOREIGN = ("Input should", "unable to parse", "pattern", "pydantic", "Value error", "RFC 3986")


@pytest.mark.parametrize(("field", "text"), WRONG)
def test_no_library_words_the_error_for_a_wrong_variable(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(WrongSetting) as caught:
        load_settings()
    assert not [words for words in FOREIGN if words in str(caught.value)], str(caught.value)


@pytest.mark.parametrize("around", ["{} ", "{}\n", "{}\r\n", "\t{}", " {}"])
@pytest.mark.parametrize(("field", "text", "value"), RIGHT)
def test_white_space_around_a_variable_does_not_count(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: Any, around: str
) -> None:
    """A file with a secret often ends in a line break."""
    monkeypatch.setenv(variable(field), around.format(text))
    assert load_settings().model_dump() == {**DEFAULTS, field: value}


@pytest.mark.parametrize("text", ["", " ", "\r\n"])
@pytest.mark.parametrize("field", DEFAULTS)
def test_an_empty_variable_is_an_unset_one(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    monkeypatch.setenv(variable(field), text)
    assert load_settings().model_dump() == DEFAULTS


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://broker:99999/", "a port that is no number from 1 to 65,535"),
        ("amqp://broker:five/", "a port that is no number from 1 to 65,535"),
        ("amqp://user:pass/word@broker/", "percent-encode user and password"),
        ("amqp://user:pass?word@broker/", "percent-encode user and password"),
        ("amqp://user:pass#word@broker/", "percent-encode user and password"),
        ("amqp://user:pass word@broker/", "white space"),
        ("amqp:///vhost", "no host"),
        ("broker:5672", "should start with amqp://"),
    ],
)
def test_a_wrong_amqp_url_is_told_by_what_is_wrong_with_it(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_amqp_url(url)
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    ["amqp://broker", "amqps://user:p%2Fw@broker:5671/%2F?heartbeat=5", "amqp://[::1]:5672/a"],
)
def test_an_amqp_url_of_any_form_is_taken(url: str) -> None:
    assert check_amqp_url(f"{url}\n") == url


@pytest.mark.parametrize(
    "url",
    ["mongodb://one,two:27018/?replicaSet=rs0", "mongodb+srv://user:p%40w@cluster.example/db",
     "mongodb://user@%2Ftmp%2Fmongodb-27017.sock/", "mongodb://[::1]:27017"],
)  # fmt: skip
def test_a_mongo_url_of_any_form_is_taken(url: str) -> None:
    assert check_mongo_url(f"{url}\n") == url


SECRETS = [
    ("amqp_url", "amqp//user:hunter2@broker/"),
    ("mongo_url", "mangodb://user:hunter2@server/"),
    ("mongo_database", "hunter2 hunter2"),
    ("mongo_driver", "hunter2"),
    ("prefix", "hunter2 hunter2"),
    ("partitions", "hunter2"),
    ("log_level", "hunter2"),
    ("drain_seconds", "hunter2"),
]


@pytest.mark.parametrize(("field", "text"), SECRETS)
def test_a_wrong_value_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    """The value may be a URL with a password, or a password in the wrong place."""
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(WrongSetting) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback would show the value"


def test_all_errors_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPLAN_PARTITIONS", "none")
    monkeypatch.setenv("OUTPLAN_HTTP_PORT", "99999")
    with pytest.raises(WrongSetting) as caught:
        load_settings()
    first, second = sorted(str(caught.value).split("; "))
    assert first.startswith("OUTPLAN_HTTP_PORT: ")
    assert second.startswith("OUTPLAN_PARTITIONS: ")


@pytest.mark.parametrize(
    "url",
    ["amqp://broker:port/", "amqp://broker:99999/", "amqp://user:pass/word@broker/",
     "amqp://user:pass#word@broker/", "amqp://[::1/"],
)  # fmt: skip
def test_an_amqp_url_that_cannot_be_parsed_is_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("OUTPLAN_AMQP_URL", url)
    with pytest.raises(WrongSetting, match="OUTPLAN_AMQP_URL"):
        load_settings()


WRONG_MONGO_URLS = [
    "mongodb://server:99999/",
    "mongodb://user:p@ss@server/",
    "mongodb://user:hunter/2@server/",
]


def refusal_of(url: str, driver: str) -> WrongSetting:
    with pytest.raises(WrongSetting, match="OUTPLAN_MONGO_URL") as caught:
        MongoStore(url, "outplan", driver)
    return caught.value


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@pytest.mark.parametrize("url", WRONG_MONGO_URLS)
def test_a_mongo_url_that_cannot_be_parsed_exits_with_2(url: str, driver: str) -> None:
    error = refusal_of(url, driver)
    assert error.exit_code == 2
    assert error.__suppress_context__, "a traceback would show the URL"


@pytest.mark.parametrize(
    "password",
    ["hunter/2", "hunter2/", "hun?ter2", "hu@nter2", "hunter2:x", "hunter2%", "12/hunter2",
     "[hunter2]/"],
)  # fmt: skip
def test_a_wrong_mongo_url_is_not_repeated(password: str) -> None:
    """Not even a part of an unescaped password is repeated."""
    text = str(refusal_of(f"mongodb://alice:{password}@server/", "pymongo"))
    assert all(piece not in text for piece in ("hunt", "nter", "ter2", "2@server", "alice"))


def test_a_misspelt_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPLAN_PARTITION", "2")
    monkeypatch.setenv("OUTPLAN_AMQPURL", "amqp://")
    monkeypatch.setenv("OUTPLAN_PARTITIONS", "2")
    monkeypatch.setenv("OUTPLAN_TEST_AMQP_URL", "amqp://for-tests/")
    monkeypatch.setenv("ANOTHER_PROGRAMS", "1")
    assert find_unknown_variables() == ("OUTPLAN_AMQPURL", "OUTPLAN_PARTITION")
    assert load_settings().partitions == 2


def test_every_setting_is_known() -> None:
    for field in Settings.model_fields:
        os.environ[variable(field)] = "1"
    try:
        assert find_unknown_variables() == ()
    finally:
        for field in Settings.model_fields:
            del os.environ[variable(field)]


def test_settings_are_immutable() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "partitions", 2)  # noqa: B010  mypy knows that it cannot be

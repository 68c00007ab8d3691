"""Sources of settings and their order, and that mistakes are told together, by name and without values."""

from __future__ import annotations

import json
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from deimos_async.errors import ConfigurationError
from deimos_async.settings import KafkaSettings, Settings, flatten, load_settings, setting_fields, variable_name
from deimos_async.topics import Backoff, OnError

SECRET = "hunter2"

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables nor a deimos.toml of the surroundings."""
    for name in list(os.environ):
        if name.startswith("DEIMOS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "deimos.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(overrides: dict[str, Any] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(overrides)
    return raised.value.problems


# --- sources ---------------------------------------------------------------------------------------------------------


def test_without_sources_there_are_the_defaults() -> None:
    assert load_settings() == Settings()
    assert load_settings().kafka.bootstrap_servers == "localhost:9092"


def test_first_source_that_says_something_wins(monkeypatch: pytest.MonkeyPatch, toml: Write, tmp_path: Path) -> None:
    names = ["client_id", "sasl_username", "ssl_ca", "bootstrap_servers"]
    # Each source says one setting fewer than the one below it.
    toml("[kafka]\n" + "\n".join(f'{name} = "toml:1"' for name in names[:3]))
    for name in names[:2]:
        monkeypatch.setenv(f"DEIMOS_KAFKA__{name.upper()}", "variable")
    kafka = load_settings({"kafka.client_id": "argument"}).kafka
    assert [getattr(kafka, name) for name in names] == ["argument", "variable", "toml:1", "localhost:9092"]


def test_file_variable_stands_where_a_variable_stands(
    monkeypatch: pytest.MonkeyPatch, toml: Write, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from file\n", encoding="utf-8")
    toml('[schema]\nuser = "me"\npassword = "from toml"')
    monkeypatch.setenv("DEIMOS_SCHEMA__PASSWORD_FILE", str(secret))
    password = load_settings().schema.password
    assert password is not None
    assert password.get_secret_value() == "from file"
    password = load_settings({"schema.password": "argument"}).schema.password
    assert password is not None
    assert password.get_secret_value() == "argument"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"x", "x"),
        (b"x\n", "x"),
        (b"x\r\n", "x"),
        (b"x\n\n", "x\n"),
        (b" x ", " x "),
        (b"", ""),
        ("é\n".encode(), "é"),
    ],
)
def test_secret_file_loses_one_line_break_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, value: str
) -> None:
    (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("DEIMOS_DATABASE__URL_FILE", "secret")
    url = load_settings().database.url
    assert url is not None
    assert url.get_secret_value() == value


def test_file_variable_works_for_clusters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("DEIMOS_CLUSTERS__EAST__SSL_KEY_PASSWORD_FILE", str(tmp_path / "secret"))
    password = load_settings().clusters["east"].ssl_key_password
    assert password is not None
    assert password.get_secret_value() == SECRET


def test_toml_is_found_where_deimos_config_says(monkeypatch: pytest.MonkeyPatch, toml: Write, tmp_path: Path) -> None:
    toml('[kafka]\nclient_id = "working directory"')
    other = tmp_path / "other.toml"
    other.write_text('[kafka]\nclient_id = "elsewhere"')
    monkeypatch.setenv("DEIMOS_CONFIG", str(other))
    assert load_settings().kafka.client_id == "elsewhere"


def test_groups_of_several_sources_merge(monkeypatch: pytest.MonkeyPatch, toml: Write) -> None:
    toml(
        '[consumers.on_error]\nattempts = 5\nthen = "skip"\n[clusters.east]\nclient_id = "a"\nbootstrap_servers = "e:1"'
    )
    monkeypatch.setenv("DEIMOS_CONSUMERS__ON_ERROR__ATTEMPTS", "7")
    monkeypatch.setenv("DEIMOS_CLUSTERS__EAST__CLIENT_ID", "b")
    settings = load_settings({"consumers": {"on_error": {"backoff_initial": 0.5}}})
    assert settings.consumers.on_error.policy() == OnError(attempts=7, backoff=Backoff(0.5, 30.0), then="skip")
    assert settings.clusters == {"east": KafkaSettings(client_id="b", bootstrap_servers="e:1")}


def test_variables_become_the_types_of_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DEIMOS_PRODUCERS__DISABLED": "true",
        "DEIMOS_PRODUCERS__DELIVERY_TIMEOUT": "2.5",
        "DEIMOS_PRODUCERS__MAX_BATCH_BYTES": "1000",
        "DEIMOS_KAFKA__CLIENT_ID": "123",
        "DEIMOS_EMBEDDED": "1",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.producers.disabled is True
    assert settings.producers.delivery_timeout == 2.5
    assert settings.producers.max_batch_bytes == 1000
    assert settings.kafka.client_id == "123"
    assert settings.embedded is True


def test_group_or_mapping_may_be_one_variable_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIMOS_KAFKA", json.dumps({"client_id": "json", "ssl_ca": "json"}))
    monkeypatch.setenv("DEIMOS_KAFKA__SSL_CA", "variable")
    monkeypatch.setenv("DEIMOS_KAFKA__EXTRA", json.dumps({"metadata.max_age": 5}))
    monkeypatch.setenv("DEIMOS_CLUSTERS", json.dumps({"east": {"client_id": "json"}}))
    settings = load_settings()
    assert (settings.kafka.client_id, settings.kafka.ssl_ca) == ("json", "variable")
    assert settings.kafka.extra == {"metadata.max_age": 5}
    assert settings.clusters["east"].client_id == "json"


def test_value_that_looks_like_json_stays_text_where_text_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIMOS_KAFKA__SASL_USERNAME", '{"a": 1}')
    assert load_settings().kafka.sasl_username == '{"a": 1}'


@pytest.mark.parametrize(
    "name",
    ["DEIMOS_PORT_8080_TCP_ADDR", "DEIMOS_SERVICE_HOST", "DEIMOS_TEST_KAFKA", "DEIMOS_KAFKA_SERVICE_HOST", "OTHER__X"],
)
def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "10.0.0.1")
    assert load_settings() == Settings()


# --- arguments -------------------------------------------------------------------------------------------------------


def test_dotted_and_nested_arguments_are_the_same() -> None:
    dotted = load_settings({"kafka.client_id": "a", "consumers.on_error.attempts": 5, "clusters.east.client_id": "b"})
    nested = load_settings(
        {
            "kafka": {"client_id": "a"},
            "consumers": {"on_error.attempts": 5},
            "clusters": {"east": KafkaSettings(client_id="b")},
        }
    )
    assert dotted == nested


def test_names_of_client_options_keep_their_dots() -> None:
    assert load_settings({"kafka.extra": {"a.b": 1}}).kafka.extra == {"a.b": 1}
    assert load_settings({"kafka": {"extra": {"a.b": {"c": 1}}}}).kafka.extra == {"a.b": {"c": 1}}


def test_settings_are_arguments_for_other_settings() -> None:
    settings = load_settings({"schema.user": "me", "schema.password": SECRET, "clusters.east.client_id": "b"})
    again = load_settings({".".join(path): value for path, value in flatten(settings.model_dump())})
    assert again == settings


@pytest.mark.parametrize(
    "overrides",
    [{"kafka": "x", "kafka.client_id": "a"}, {"kafka.client_id": "a", "kafka": "x"}],
)
def test_group_that_is_also_a_value_is_refused(overrides: dict[str, Any]) -> None:
    assert problems(overrides) == ("setting 'kafka' is given both as a value and as a group",)


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.embedded = True
    with pytest.raises(ValidationError):
        settings.kafka.client_id = "x"


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_of_all_sources_are_told_at_once(monkeypatch: pytest.MonkeyPatch, toml: Write) -> None:
    toml('[kafka]\nclient_idd = "x"\n[producers]\ncompression = "brotli"')
    monkeypatch.setenv("DEIMOS_CONSUMERS__MAX_RECORDS", "none")
    monkeypatch.setenv("DEIMOS_KAFKAA__CLIENT_ID", "x")
    monkeypatch.setenv("DEIMOS_KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")
    monkeypatch.setenv("DEIMOS_SCHEMA__PASSWORD_FILE", "nowhere")
    monkeypatch.setenv("DEIMOS_CLUSTERS", "[]")
    found = problems({"schema.backendd": "plain", "producers.delivery_timeout": 0})
    for problem in (
        "setting 'kafka.client_idd' (variable DEIMOS_KAFKA__CLIENT_IDD) does not exist; "
        "did you mean 'kafka.client_id'?",
        "setting 'producers.compression' (variable DEIMOS_PRODUCERS__COMPRESSION): Input should be 'none', 'gzip', "
        "'snappy', 'lz4' or 'zstd'",
        "setting 'consumers.max_records' (variable DEIMOS_CONSUMERS__MAX_RECORDS): Input should be a valid integer, "
        "unable to parse string as an integer",
        "setting 'kafkaa' (variable DEIMOS_KAFKAA) does not exist; did you mean 'kafka'?",
        "DEIMOS_KAFKA_BOOTSTRAP_SERVERS is not read, as groups are joined by two underscores; "
        "call it DEIMOS_KAFKA__BOOTSTRAP_SERVERS",
        "DEIMOS_SCHEMA__PASSWORD_FILE: cannot read the file that it names (No such file or directory)",
        "DEIMOS_CLUSTERS is a group of settings: give a JSON object, or DEIMOS_CLUSTERS__<NAME> for each setting in it",
        "setting 'schema.backendd' (variable DEIMOS_SCHEMA__BACKENDD) does not exist; did you mean 'schema.backend'?",
        "setting 'producers.delivery_timeout' (variable DEIMOS_PRODUCERS__DELIVERY_TIMEOUT): "
        "Input should be greater than 0",
    ):
        assert problem in found
    assert len(found) == 9


def test_variable_and_file_variable_of_one_setting_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("DEIMOS_DATABASE__URL", "x")
    monkeypatch.setenv("DEIMOS_DATABASE__URL_FILE", "secret")
    assert problems() == ("DEIMOS_DATABASE__URL and DEIMOS_DATABASE__URL_FILE are both set; keep one of them",)


def test_file_that_is_no_text_is_told_without_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET.encode() + b"\xff")
    monkeypatch.setenv("DEIMOS_DATABASE__URL_FILE", "secret")
    assert problems() == ("DEIMOS_DATABASE__URL_FILE: cannot read the file that it names (UnicodeDecodeError)",)


def test_deimos_config_that_names_no_file_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIMOS_CONFIG", "nowhere.toml")
    assert problems() == ("nowhere.toml (named by DEIMOS_CONFIG) cannot be read (No such file or directory)",)


def test_toml_that_is_none_is_told_by_place_without_its_content(toml: Write) -> None:
    toml(f'[schema]\npassword = "{SECRET}')
    (problem,) = problems()
    assert problem.startswith("deimos.toml is not valid TOML (")
    assert SECRET not in problem


def test_toml_in_another_encoding_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "deimos.toml").write_bytes(b'[kafka]\nclient_id = "\xe9"')
    assert problems() == ("deimos.toml is not valid TOML (not UTF-8)",)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"kafka.bootstrap_servers": "kafka"}, "entry 1 is not host:port; give host:port[,host:port...]"),
        ({"kafka.bootstrap_servers": "a:1,b:0"}, "entry 2 is not host:port"),
        ({"kafka.bootstrap_servers": "a:65536"}, "entry 1 is not host:port"),
        ({"kafka.bootstrap_servers": ""}, "entry 1 is not host:port"),
        ({"kafka.bootstrap_servers": "a:²"}, "entry 1 is not host:port"),
        ({"kafka.replication_factor": 0}, "must be at least 1, or -1 for the broker's default"),
        ({"kafka.request_timeout": float("inf")}, "Input should be a finite number"),
        ({"kafka.security_protocol": "SASL_SSL"}, "setting 'kafka.sasl_mechanism' is missing"),
        ({"kafka.sasl_mechanism": "PLAIN"}, "use SASL_SSL, or remove sasl_mechanism"),
        (
            {"kafka.security_protocol": "SASL_PLAINTEXT", "kafka.sasl_mechanism": "OAUTHBEARER",
             "kafka.sasl_oauth_token_provider": "a:b"},
            "set 'kafka.sasl_allow_cleartext' to true",
        ),
        (
            {"kafka.security_protocol": "SASL_SSL", "kafka.sasl_mechanism": "PLAIN", "kafka.sasl_username": "me"},
            "settings 'kafka.sasl_username' and 'kafka.sasl_password' are both needed: sasl_mechanism is PLAIN",
        ),
        (
            {"kafka.security_protocol": "SASL_SSL", "kafka.sasl_mechanism": "OAUTHBEARER"},
            "setting 'kafka.sasl_oauth_token_provider' is missing",
        ),
        ({"kafka.ssl_certificate": "a.pem"}, "'kafka.ssl_certificate' and 'kafka.ssl_key' are given together"),
        ({"clusters.east.security_protocol": "SASL_SSL"}, "setting 'clusters.east.sasl_mechanism' is missing"),
        ({"clusters.default.client_id": "x"}, "setting 'clusters.default' cannot be used"),
        ({"schema.password": SECRET}, "setting 'schema.password' is given without 'schema.user'"),
        ({"schema.token": SECRET, "schema.user": "me"}, "settings 'schema.token' and 'schema.user' exclude each other"),
        ({"schema.registry_url": f"http://me:{SECRET}@registry"},
         "setting 'schema.registry_url' (variable DEIMOS_SCHEMA__REGISTRY_URL): must not hold credentials; "
         "give them as 'schema.user' and 'schema.password'"),
        ({"schema.registry_url": "registry:8081"}, "must be http://host:port or https://host:port"),
        ({"consumers.session_timeout": 6}, "'consumers.heartbeat_interval' must be at most a third"),
        ({"consumers.shutdown_timeout": 60}, "'consumers.rebalance_timeout' must be above"),
        ({"consumers.on_error.backoff_initial": 31}, "'consumers.on_error.backoff_maximum' must be at least"),
        ({"consumers.dead_letter_topic": "dlt"}, "'consumers.dead_letter_topic' must hold {topic}"),
        ({"consumers.dead_letter_topic": "{topic}"}, "'consumers.dead_letter_topic' must hold {topic} and something"),
    ],
)  # fmt: skip
def test_mistake_is_told_with_what_to_change(overrides: dict[str, Any], problem: str) -> None:
    (found,) = problems(overrides)
    assert problem in found
    assert SECRET not in found


def test_spaces_around_servers_are_dropped() -> None:
    assert load_settings({"kafka.bootstrap_servers": "a:1, [::1]:2"}).kafka.bootstrap_servers == "a:1,[::1]:2"


@pytest.mark.parametrize(
    "settings",
    [
        {"kafka.security_protocol": "SASL_SSL", "kafka.sasl_mechanism": "PLAIN", "kafka.sasl_username": "me",
         "kafka.sasl_password": "x"},
        {"kafka.security_protocol": "SASL_SSL", "kafka.sasl_mechanism": "OAUTHBEARER",
         "kafka.sasl_oauth_token_provider": "shop.tokens:fresh"},
        {"kafka.security_protocol": "SASL_PLAINTEXT", "kafka.sasl_mechanism": "SCRAM-SHA-256",
         "kafka.sasl_username": "a", "kafka.sasl_password": "x", "kafka.sasl_allow_cleartext": True},
        {"kafka.security_protocol": "SSL", "kafka.ssl_certificate": "a.pem", "kafka.ssl_key": "a.key"},
        {"kafka.replication_factor": 3},
        {"schema.registry_url": "https://a, https://b", "schema.token": "x"},
    ],
)  # fmt: skip
def test_settings_that_fit_together_are_taken(settings: dict[str, Any]) -> None:
    assert isinstance(load_settings(settings), Settings)


# --- secrets ---------------------------------------------------------------------------------------------------------


def secret_paths() -> list[str]:
    return [".".join(path) for path, field in setting_fields() if "SecretStr" in str(field.annotation)]


def test_settings_that_hold_secrets_are_secret_by_type() -> None:
    assert set(secret_paths()) == {
        "kafka.sasl_password",
        "kafka.ssl_key",
        "kafka.ssl_key_password",
        "schema.password",
        "schema.token",
        "schema.ssl_key",
        "database.url",
    }


@pytest.mark.parametrize("path", [*secret_paths(), "clusters.east.sasl_password"])
def test_secret_is_in_no_repr_and_in_no_error(path: str) -> None:
    needed = {"schema.user": "me"} if path == "schema.password" else {}
    if path == "kafka.ssl_key":
        needed["kafka.ssl_certificate"] = "a.pem"
    settings = load_settings({path: SECRET, **needed})
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in settings.model_dump_json()
    value: Any = settings
    for step in path.split("."):
        value = value[step] if isinstance(value, dict) else getattr(value, step)
    assert isinstance(value, SecretStr)
    assert value.get_secret_value() == SECRET


def test_client_options_are_in_no_repr() -> None:
    settings = load_settings({"kafka.extra": {"sasl_plain_password": SECRET}})
    assert SECRET not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    "overrides",
    [
        {"kafka.sasl_password": [SECRET]},
        {"kafka.sasl_password": SECRET, "kafka.sasl_mechanism": "PLAIN"},
        {"kafka": SECRET},
        {"database": {"urll": f"postgresql://me:{SECRET}@db"}},
        {"schema.registry_url": f"http://me:{SECRET}@registry:port"},
        {"kafka.bootstrap_servers": f"me:{SECRET}@kafka"},
        {"kafka.connect_timeout": SECRET},
        {"producers.backend": SECRET},
        {"clusters": {"east": {"sasl_password": {"x": SECRET}}}},
    ],
)
def test_no_value_is_in_the_text_the_traceback_or_the_pickle_of_an_error(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(overrides)
    error = raised.value
    shown = str(error) + repr(error) + "".join(traceback.format_exception(error))
    assert SECRET not in shown
    assert SECRET.encode() not in pickle.dumps(error)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("name", ["DEIMOS_KAFKA", "DEIMOS_CLUSTERS", "DEIMOS_KAFKA__EXTRA"])
def test_variable_that_is_no_json_is_told_without_its_value(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, '{"sasl_password": "' + SECRET)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert name in str(raised.value)


def test_settings_made_directly_read_the_same_sources_and_tell_no_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEIMOS_KAFKA__CLIENT_ID", "variable")
    assert Settings().kafka.client_id == "variable"
    with pytest.raises(ValidationError) as raised:
        Settings(database={"url": [SECRET]})  # type: ignore[arg-type]
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("DEIMOS_DATABASE__URL_FILE", "nowhere")
    with pytest.raises(ConfigurationError, match="DEIMOS_DATABASE__URL_FILE"):
        Settings()


# --- the classes -----------------------------------------------------------------------------------------------------


def test_every_setting_says_what_it_is() -> None:
    groups: list[type[BaseModel]] = [Settings]
    for group in groups:
        for name, field in group.model_fields.items():
            assert field.description, f"{group.__name__}.{name} has no description"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                groups.append(field.annotation)
    assert len(groups) > 7


def test_no_setting_has_a_name_that_file_variables_would_take() -> None:
    names = {variable_name(path) for path, _ in setting_fields()}
    assert not {name for name in names if name.endswith("_FILE")}

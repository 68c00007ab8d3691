"""What was configured: frozen groups of settings, read once.

Sources, the first wins: arguments, `DEIMOS_*` variables (groups joined by `__`), `DEIMOS_*_FILE` variables that name a
file holding the value, `deimos.toml` (in the working directory, or where `DEIMOS_CONFIG` says), defaults.
The reference page of settings is made from these classes. Durations are seconds.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from deimos_async.errors import ConfigurationError
from deimos_async.topics import Backoff, OnError, PayloadLog, Then, registry_url_problem

__all__ = [
    "ConsumersSettings",
    "DatabaseSettings",
    "KafkaSettings",
    "KeyedRetriesSettings",
    "LoggingSettings",
    "OnErrorSettings",
    "OutboxSettings",
    "ProducersSettings",
    "SchemaSettings",
    "Settings",
    "flatten",
    "load_settings",
    "setting_fields",
    "variable_name",
]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_PREFIX = "DEIMOS_"
_FILE_SUFFIX = "_file"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class KafkaSettings(_Group):
    """How one Kafka cluster is reached."""

    bootstrap_servers: str = "localhost:9092"
    """Brokers to ask first, `host:port` joined by commas."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's own word for transport and authentication together."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """Required with the SASL protocols."""
    sasl_username: str | None = None
    """User name for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """Password for PLAIN and SCRAM."""
    sasl_oauth_token_provider: str | None = None
    """For OAUTHBEARER: `module:attribute` of an async callable without arguments that returns a fresh token."""
    sasl_allow_cleartext: bool = False
    """Allow SASL without TLS (SASL_PLAINTEXT). Passwords or tokens then cross the network readable."""
    ssl_ca: str | None = None
    """Authorities to trust: a path, or the PEM text itself. None: those of the system."""
    ssl_certificate: str | None = None
    """Client certificate (path or PEM text) for mutual TLS."""
    ssl_key: SecretStr | None = None
    """Private key of the client certificate (path or PEM text)."""
    ssl_key_password: SecretStr | None = None
    """Password of the private key."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name the host. Switch off for tests only."""
    client_id: str = "deimos-async"
    """Name that the brokers log and quota by."""
    connect_timeout: Seconds = 10.0
    """Seconds that a start waits for the first answer of a broker before it fails."""
    request_timeout: Seconds = 30.0
    """Seconds until a request without an answer is given up and repeated."""
    create_topics: bool = False
    """Make missing topics, retry and dead-letter ones included, at start. Default: they are a `ConfigurationError`."""
    partitions: Count = 1
    """Partitions of topics that are made, unless the topic says otherwise."""
    replication_factor: int = -1
    """Replicas of topics that are made; -1 takes the broker's default."""
    # Options of the client may be passwords, whose names we do not know: the repr leaves all of them out.
    extra: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Further options for the client library, by its own names."""

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        for number, server in enumerate(servers, 1):
            host, colon, port = server.rpartition(":")
            if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
                raise ValueError(f"entry {number} is not host:port; give host:port[,host:port...]")
        return ",".join(servers)

    @field_validator("replication_factor")
    @classmethod
    def _check_replication_factor(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be at least 1, or -1 for the broker's default")
        return value


class SchemaSettings(_Group):
    """Where schemas come from and how payloads are encoded."""

    backend: str = "avro_schema_registry"
    """Schema backend of topics that name none."""
    path: str = "schemas"
    """Folder of schema files: `com.acme.Order` is `<path>/com/acme/Order.avsc`."""
    registry_url: str = "http://localhost:8081"
    """URL of the schema registry; several, joined by commas, are tried in turn."""
    user: str | None = None
    """User name for basic authentication. Sent to this registry only."""
    password: SecretStr | None = None
    """Password for basic authentication."""
    token: SecretStr | None = None
    """Bearer token, instead of user and password."""
    ssl_ca: str | None = None
    """Authorities to trust for https, as a path. None: those of the system."""
    ssl_certificate: str | None = None
    """Client certificate (path) for mutual TLS."""
    ssl_key: SecretStr | None = None
    """Private key of the client certificate (path)."""
    auto_register: bool = True
    """Whether producers register schemas that the registry lacks. Consumers never do."""
    use_latest_version: bool = False
    """Encode with the subject's newest schema in the registry instead of the file's."""
    subject_strategy: Literal["topic", "record", "topic_record"] = "topic"
    """Subject of a schema: `<topic>-value`, `<full name>`, or `<topic>-<full name>`; keys accordingly."""
    unknown_fields: Literal["drop", "error"] = "drop"
    """What happens to fields that the schema does not have, at every depth."""
    request_timeout: Seconds = 5.0
    """Seconds for one request to the registry."""
    deadline: Seconds = 30.0
    """Seconds for one question to the registry with all its retries and fail-overs."""
    latest_ttl: Seconds = 300.0
    """Seconds for which the newest version of a subject is taken as known."""
    missing_ttl: Seconds = 10.0
    """Seconds for which an id or subject that the registry does not know is not asked for again."""

    @field_validator("registry_url")
    @classmethod
    def _check_registry_url(cls, value: str) -> str:
        problem = registry_url_problem(value, "schema.user", "schema.password")
        if problem is not None:
            raise ValueError(problem)
        return value


class OnErrorSettings(_Group):
    """What happens when a handler raises, unless the consumer or topic says otherwise."""

    attempts: Count = 3
    """Attempts in place; the first one counts."""
    backoff_initial: Seconds = 0.1
    """Seconds before the second attempt."""
    backoff_maximum: Seconds = 30.0
    """Longest wait between attempts, in seconds."""
    then: Then = "dead_letter"
    """What follows the last attempt."""

    def policy(self) -> OnError:
        """The same as a policy."""
        return OnError(
            attempts=self.attempts, backoff=Backoff(self.backoff_initial, self.backoff_maximum), then=self.then
        )


class KeyedRetriesSettings(_Group):
    """Messages that wait in the table `kafka_retries`, with `then="retry_keyed"`."""

    attempts: Count = 10
    """Attempts of a message there, beyond those in place (`OnError.attempts`), until it becomes a dead letter."""
    backoff_initial: Seconds = 1.0
    """Seconds before the first of them. It doubles each time; half of it is drawn."""
    backoff_maximum: Seconds = 300.0
    """Longest wait between them, in seconds."""
    max_per_key: Count = 1000
    """Most messages of a key there. Above it the partition waits."""
    max_per_group: Count = 10000
    """Most messages of a group there, about. Above it partitions wait at messages that would have to go there."""


class ProducersSettings(_Group):
    """How messages are sent."""

    backend: Literal["kafka", "kafka_async", "outbox", "test"] = "kafka"
    """`kafka` waits for the acknowledgement, `kafka_async` buffers, `outbox` stores in the database what is sent later,
    `test` keeps the messages in memory."""
    topic_prefix: str = ""
    """Put before every topic and group name."""
    disabled: bool = False
    """Send nothing."""
    delivery_timeout: Seconds = 60.0
    """Seconds until a message without an acknowledgement is given up with a `DeliveryError`."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of batches. snappy, lz4 and zstd need the extra `compression`, here and wherever it is read."""
    max_batch_bytes: Count = 131072
    """Largest batch for one partition."""
    max_request_bytes: Count = 1048588
    """Largest message; a larger one is refused before it is sent. The brokers' own default: what they took fits."""
    buffer_messages: Count = 10000
    """Most messages that `kafka_async` holds; `produce` waits while it is full."""
    truncate_columns: bool = False
    """Cut text to the length of its column (`String(n)`) in what a `ModelProducer` or `KafkaSource` sends."""


class OutboxSettings(_Group):
    """How messages that are stored in the outbox leave the database: the settings of its pump."""

    max_in_flight: Count = 2000
    """Most messages of one process that are on their way, or acknowledged and not deleted yet: what a crash may send
    twice. While a topic does not answer, as many of other topics may be on their way, too."""
    batch_rows: Count = 1000
    """Most rows of one reading."""
    batch_bytes: Count = 8388608
    """Most bytes of one reading; a single message may be larger."""
    poll_interval: Seconds = 0.5
    """Seconds between looks at the table where the database tells of new rows (PostgreSQL); others are looked at
    every 10 ms while rows come, and at least four times a second."""
    lease_ttl: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 5.0
    """Seconds after which another process takes over what belonged to one that has vanished without a trace."""
    shutdown_timeout: Seconds = 30.0
    """Seconds that messages on their way have at a stop, before they are abandoned, to be sent again later."""
    max_blocked_keys: Count = 1000
    """Most keys that wait for a message that cannot be sent; above it whole shards wait."""
    poison: Literal["block_key", "park"] = "block_key"
    """What happens to a message that cannot be sent: `block_key` makes its key wait for it; `park` puts it aside, into
    `kafka_parked_messages`, and its key goes on without it, which gives up the order of the key."""
    compact_topics: str = ""
    """Topics, by their names in Kafka, joined by commas, or `all`: of each key in a batch only the last message is
    sent."""
    log_topics: str = ""
    """Topics, likewise, whose messages are logged at level debug before they are sent."""
    count_interval: Seconds = 15.0
    """Seconds between two counts of what waits in the table."""


class PollersSettings(_Group):
    """How pollers read tables; what each reads, and how often, is said where it is declared."""

    batch_rows: Count = 1000
    """Most rows of one page, which is what a crash may send twice."""
    lease_ttl: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 5.0
    """Seconds after which another process takes over a poller whose process has vanished."""
    overlap: Seconds = 30.0
    """Seconds that are read again in each run where the database's user may not see which transactions are open: rows
    that are committed later than that after their time are missed then."""
    max_failed_rows: Count = 10000
    """Most rows of one poller that wait as they could not be sent; with more it goes no further."""
    shutdown_timeout: Seconds = 30.0
    """Seconds that a page on its way has at a stop, before it is abandoned, to be sent again later."""


class ConsumersSettings(_Group):
    """How groups read."""

    group: str | None = None
    """Group of consumers that name none."""
    on_error: OnErrorSettings = OnErrorSettings()
    """What happens when a handler raises."""
    keyed_retries: KeyedRetriesSettings = KeyedRetriesSettings()
    """Messages that wait with `then="retry_keyed"`."""
    reraise_errors: bool = False
    """Stop a consumer at the first error instead of retrying."""
    session_timeout: Seconds = 45.0
    """Seconds without a heartbeat until the group gives a member's partitions to others."""
    heartbeat_interval: Seconds = 3.0
    """Seconds between heartbeats; at most a third of `session_timeout`."""
    rebalance_timeout: Seconds = 60.0
    """Seconds that a member has for giving up its partitions when the group rebalances."""
    max_poll_interval: Seconds = 300.0
    """Seconds without asking for records after which a member leaves the group. Handlers do not count, however long
    they take: records are asked for meanwhile. Only a consumer that has come to a halt itself is ended by it."""
    shutdown_timeout: Seconds = 30.0
    """Seconds that running handlers have at a stop, and at a rebalance, before they are cancelled."""
    commit_interval: Seconds = 1.0
    """Seconds between offset commits: what is handled twice after a crash is at most what was handled meanwhile."""
    max_records: Count = 500
    """Most records taken from the client at once."""
    max_buffered_bytes: Count = 67108864
    """Most bytes of one consumer that wait for a handler, by a sample of each fetch; fetching pauses above it."""
    max_buffered: Count = 2000
    """Most records of one consumer that wait for a handler; fetching pauses above it."""
    fetch_max_bytes: Count = 16777216
    """Most bytes in one answer of a broker."""
    max_partition_fetch_bytes: Count = 1048576
    """Most bytes of one partition in one answer of a broker."""
    instance_id: str | None = None
    """Static membership: stable name of this process. The consumer's name is appended for each member."""
    on_lost_offset: Literal["stop", "earliest", "latest"] = "stop"
    """With `delivery="effectively_once"`: what follows where the stored offset does not exist in its partition, or the
    topic was deleted and made again. `stop` with an error, or go on at the `earliest` or `latest` offset there is."""
    stall_timeout: Seconds = 120.0
    """Seconds without any progress after which a partition that has something to do counts as stalled: `/livez` says
    so, and where no handler of the consumer is running a new member takes over. A partition at which a handler is at
    work is not stalled, however long that takes."""
    loop_lag_warning: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Seconds by which the event loop may be late before a warning says so. 0: no warning."""
    dead_letter_topic: str = "{topic}-dlt"
    """Name of a topic's dead-letter topic; `{topic}` must be in it."""
    spring_headers: bool = False
    """Whether dead letters tell their origin under spring-kafka's header names, too, for tools that read those."""
    retry_topic: str = "{topic}-retry-{n}"
    """Name of a topic's n-th retry topic, from 1; `{topic}` and `{n}` must be in it."""


class DatabaseSettings(_Group):
    """The application's database."""

    url: SecretStr | None = None
    """SQLAlchemy URL with an async driver, e.g. `postgresql+asyncpg://...`. Secret, as it may hold a password."""
    idle_transaction_timeout: float | None = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds after which PostgreSQL or MariaDB ends a transaction of ours in which nothing is asked, so that a frozen
    process holds up nobody else; a handler that waits for something else for longer, with its transaction open, is
    begun again. None: what the server does by itself. Not for an `engine=` of one's own, nor for MySQL, which has
    nothing like it.
    """


class LoggingSettings(_Group):
    """What log lines show."""

    payload_log: PayloadLog = "full"
    """Of messages: `full` payloads and keys, `headers`, `keys`, or their `count`."""


_collected: ContextVar[list[str] | None] = ContextVar("deimos_async.settings.collected", default=None)


def _report(problem: str) -> None:
    """Keep the problem where `load_settings` collects them; elsewhere raise it at once."""
    collected = _collected.get()
    if collected is None:
        raise ConfigurationError(problem)
    collected.append(problem)


def _nested(pairs: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """`[(("kafka", "ssl_ca"), "x")]` -> `{"kafka": {"ssl_ca": "x"}}`. A later pair of the same path wins."""
    tree: dict[str, Any] = {}
    for path, value in pairs:
        branch = tree
        for depth, step in enumerate(path[:-1], 1):
            below = branch.setdefault(step, {})
            if not isinstance(below, dict):
                _report(f"setting {'.'.join(path[:depth])!r} is given both as a value and as a group")
                below = branch[step] = {}
            branch = below
        if isinstance(branch.get(path[-1]), dict) and not isinstance(value, dict):
            _report(f"setting {'.'.join(path)!r} is given both as a value and as a group")
        else:
            branch[path[-1]] = value
    return tree


def variable_name(path: Iterable[str]) -> str:
    """`("kafka", "ssl_ca")` -> `DEIMOS_KAFKA__SSL_CA`."""
    return _PREFIX + "__".join(path).upper()


class _Variables(PydanticBaseSettingsSource):
    """`DEIMOS_SCHEMA__USER=me`, and `DEIMOS_SCHEMA__PASSWORD_FILE=/run/secrets/registry`, whose value is that file's
    text without its last line break. A group or mapping may be given as a whole, as a JSON object.

    Names without `__` that are no setting are left alone: orchestrators put addresses of a service called "deimos"
    under that prefix. One that is a setting but for the doubled underscore is a mistake.
    """

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the port asks for it; the whole tree is given by __call__

    def __call__(self) -> dict[str, Any]:
        found: dict[tuple[str, ...], tuple[str, str]] = {}
        for name, value in sorted(os.environ.items()):
            if not name.startswith(_PREFIX):
                continue
            path = tuple(name[len(_PREFIX) :].lower().split("__"))
            if len(path) == 1 and path[0] not in Settings.model_fields:
                self._check_underscores(name, path[0])
                continue
            text: str | None = value
            if path[-1].endswith(_FILE_SUFFIX):
                path = (*path[:-1], path[-1].removesuffix(_FILE_SUFFIX))
                text = self._read(name, value)
            if path in found:
                _report(f"{found[path][0]} and {name} are both set; keep one of them")
            elif text is not None:
                found[path] = name, text
        pairs: list[tuple[tuple[str, ...], Any]] = []
        # Short paths first, so that DEIMOS_KAFKA__SSL_CA stands above the same setting within DEIMOS_KAFKA.
        for path, (name, text) in sorted(found.items(), key=lambda item: len(item[0])):
            pairs += self._pairs(name, path, text)
        return _nested(pairs)

    def _pairs(self, name: str, path: tuple[str, ...], text: str) -> Iterable[tuple[tuple[str, ...], Any]]:
        if not _is_mapping(path):
            return [(path, text)]
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            _report(f"{name} is a group of settings: give a JSON object, or {name}__<NAME> for each setting in it")
            return []
        return flatten({path[-1]: value}, path[:-1])

    def _read(self, name: str, path: str) -> str | None:
        try:
            # Text mode makes one "\n" of every kind of line break.
            return Path(path).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, ValueError) as error:
            _report(f"{name}: cannot read the file that it names ({_reason(error)})")
            return None

    def _check_underscores(self, name: str, joined: str) -> None:
        for path, _ in setting_fields():
            if joined == "_".join(path):
                _report(f"{name} is not read, as groups are joined by two underscores; call it {variable_name(path)}")


class _Toml(PydanticBaseSettingsSource):
    """`deimos.toml`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the port asks for it; the whole tree is given by __call__

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get("DEIMOS_CONFIG")
        path = Path(named or "deimos.toml")
        if not named and not path.is_file():
            return {}
        where = f"{path} (named by DEIMOS_CONFIG)" if named else str(path)
        try:
            with path.open("rb") as file:
                return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            # The parser's text may quote the file, and with it a secret; the place is all that is needed.
            place = str(error).rpartition("(at ")[2].removesuffix(")") if "(at " in str(error) else "not UTF-8"
            _report(f"{where} is not valid TOML ({place})")
        except (OSError, ValueError) as error:
            _report(f"{where} cannot be read ({_reason(error)})")
        return {}


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__


with warnings.catch_warnings():
    # `schema` is the documented name of the group; pydantic warns that it hides a deprecated method of that name.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class Settings(BaseSettings):
        """Every setting. `app.settings` is the frozen result."""

        model_config = SettingsConfigDict(
            frozen=True,
            extra="forbid",
            use_attribute_docstrings=True,
            hide_input_in_errors=True,
            nested_model_default_partial_update=True,
        )

        kafka: KafkaSettings = KafkaSettings()
        """The default cluster."""
        clusters: dict[str, KafkaSettings] = Field(default_factory=dict)
        """More clusters by name, for topics with `cluster=`."""
        schema: SchemaSettings = SchemaSettings()  # type: ignore[assignment]  # hides a deprecated method on purpose
        """Schemas and their registry."""
        producers: ProducersSettings = ProducersSettings()
        """Producers."""
        outbox: OutboxSettings = OutboxSettings()
        """Outbox."""
        pollers: PollersSettings = PollersSettings()
        """Pollers."""
        consumers: ConsumersSettings = ConsumersSettings()
        """Consumers."""
        database: DatabaseSettings = DatabaseSettings()
        """Database."""
        logging: LoggingSettings = LoggingSettings()
        """Logs."""
        embedded: bool = False
        """In-memory broker, in-process registry and a fresh SQLite file: what `run --embedded` sets. Never implied."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, _Variables(settings_cls), _Toml(settings_cls))


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read all sources.

    Args:
        overrides: Above every other source, by dotted names (`{"kafka.bootstrap_servers": "..."}`) or nested.

    Raises:
        ConfigurationError: Every mistake at once; each names the setting and the variable, never a value.
    """
    problems: list[str] = []
    collecting = _collected.set(problems)
    try:
        settings = Settings(**_nested(flatten(overrides or {})))
    except ValidationError as error:
        problems += [_explain(detail) for detail in error.errors(include_input=False, include_url=False)]
    finally:
        _collected.reset(collecting)
    if not problems:
        problems += _check_together(settings)
    if problems:
        raise ConfigurationError(*problems)
    return settings


def setting_fields(
    group: type[BaseModel] | None = None, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every setting, in order of the classes, as `(("kafka", "ssl_ca"), field)`; groups give what is in them."""
    for name, field in (group or Settings).model_fields.items():
        path = (*above, name)
        if _is_group(field.annotation):
            yield from setting_fields(field.annotation, path)
        else:
            yield path, field


def _is_group(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_mapping(path: tuple[str, ...]) -> bool:
    """Whether the setting is a group or a mapping, which a variable gives as JSON."""
    annotation: Any = Settings
    for step in path:
        if _is_group(annotation):
            field = annotation.model_fields.get(step)
            annotation = None if field is None else field.annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return False
    return _is_group(annotation) or get_origin(annotation) is dict


def flatten(overrides: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Dotted or nested settings as `(("kafka", "ssl_ca"), value)`."""
    for name, value in overrides.items():
        path = (*above, *str(name).split("."))
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping) and path[-1] != "extra" and value:
            yield from flatten(value, path)
        else:
            yield path, value


def _explain(detail: Any) -> str:
    path = [str(step) for step in detail["loc"]]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        paths = [known for known, _ in setting_fields()]
        known = sorted({".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)})
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else "remove it or mend its name"
        return f"setting {name!r} (variable {variable_name(path)}) does not exist; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"setting {name!r} (variable {variable_name(path)}): {message}"


def _check_together(settings: Settings) -> Iterable[str]:
    clusters = {"kafka": settings.kafka} | {f"clusters.{name}": kafka for name, kafka in settings.clusters.items()}
    for group, kafka in clusters.items():
        sasl = kafka.security_protocol.startswith("SASL")
        if sasl and kafka.sasl_mechanism is None:
            yield f"setting '{group}.sasl_mechanism' is missing: security_protocol is {kafka.security_protocol}"
        if not sasl and kafka.sasl_mechanism is not None:
            yield (
                f"setting '{group}.security_protocol' is {kafka.security_protocol}, but sasl_mechanism is given; "
                "use SASL_SSL, or remove sasl_mechanism"
            )
        if kafka.security_protocol == "SASL_PLAINTEXT" and not kafka.sasl_allow_cleartext:
            yield (
                f"setting '{group}.security_protocol' is SASL_PLAINTEXT, which sends credentials readable; "
                f"use SASL_SSL, or set '{group}.sasl_allow_cleartext' to true"
            )
        if kafka.sasl_mechanism == "OAUTHBEARER":
            if not kafka.sasl_oauth_token_provider:
                yield f"setting '{group}.sasl_oauth_token_provider' is missing: sasl_mechanism is OAUTHBEARER"
        elif sasl and kafka.sasl_mechanism and (kafka.sasl_username is None or kafka.sasl_password is None):
            yield (
                f"settings '{group}.sasl_username' and '{group}.sasl_password' are both needed: "
                f"sasl_mechanism is {kafka.sasl_mechanism}"
            )
        if (kafka.ssl_certificate is None) != (kafka.ssl_key is None):
            yield f"settings '{group}.ssl_certificate' and '{group}.ssl_key' are given together or not at all"
    schema, consumers = settings.schema, settings.consumers
    if schema.token is not None and schema.user is not None:
        yield "settings 'schema.token' and 'schema.user' exclude each other; keep one way of authentication"
    if schema.password is not None and schema.user is None:
        yield "setting 'schema.password' is given without 'schema.user'"
    if consumers.on_error.backoff_maximum < consumers.on_error.backoff_initial:
        yield "setting 'consumers.on_error.backoff_maximum' must be at least 'consumers.on_error.backoff_initial'"
    if consumers.keyed_retries.backoff_maximum < consumers.keyed_retries.backoff_initial:
        yield (
            "setting 'consumers.keyed_retries.backoff_maximum' must be at least "
            "'consumers.keyed_retries.backoff_initial'"
        )
    if consumers.heartbeat_interval * 3 > consumers.session_timeout:
        yield "setting 'consumers.heartbeat_interval' must be at most a third of 'consumers.session_timeout'"
    if consumers.shutdown_timeout >= consumers.rebalance_timeout:
        yield (
            "setting 'consumers.rebalance_timeout' must be above 'consumers.shutdown_timeout': "
            "a partition that goes is drained first"
        )
    if "default" in settings.clusters:
        yield "setting 'clusters.default' cannot be used: the default cluster is 'kafka'"
    if "{topic}" not in consumers.dead_letter_topic or consumers.dead_letter_topic == "{topic}":
        yield "setting 'consumers.dead_letter_topic' must hold {topic} and something more, e.g. '{topic}-dlt'"
    if "{topic}" not in consumers.retry_topic or "{n}" not in consumers.retry_topic:
        yield "setting 'consumers.retry_topic' must hold {topic} and {n}, e.g. '{topic}-retry-{n}'"

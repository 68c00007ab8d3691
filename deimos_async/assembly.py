"""From declarations and settings to objects: checks everything that can be seen before the first message.

Nothing is opened here. All mistakes are found in one pass and reported together.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deimos_async.consuming.consumer import Circumstances, Consumer
from deimos_async.consuming.dead_letters import dead_letter_topic, is_dead_letter_topic, retry_topic
from deimos_async.database.protocol import LONGEST_GROUP
from deimos_async.errors import ConfigurationError, DeimosError
from deimos_async.events import EventBus
from deimos_async.producing.producer import Producer
from deimos_async.router import Declarations
from deimos_async.schemas.backends import backend as schema_backend
from deimos_async.schemas.codec import TopicCodec, build_codec
from deimos_async.schemas.files import SchemaFiles
from deimos_async.schemas.typed import payload_converter
from deimos_async.specs import ConsumerSpec, HandlerSpec, handler_spec
from deimos_async.topics import UNSET, FatalError, NoKey, OnError, Topic, TopicOptions, merge_options

if TYPE_CHECKING:  # start-up time: the client is loaded where a topic uses a registry
    from deimos_async.polling.poller import PlannedPoller
    from deimos_async.schemas.registry import SchemaRegistry
    from deimos_async.settings import Settings

__all__ = [
    "Codecs",
    "Plan",
    "PlannedConsumer",
    "PlannedTopic",
    "RequiredTopic",
    "make_plan",
    "required_topics",
    "with_codecs",
]


class Codecs:
    """Codecs of topics, and the registries that they ask, under one set of settings.

    Args:
        embedded: A registry in this process that every topic uses instead of those in the settings.
        mock: Whether each schema backend is replaced by the one that stands in for it in tests.
    """

    def __init__(self, settings: Settings, *, embedded: SchemaRegistry | None = None, mock: bool = False) -> None:
        self._settings = settings
        self._embedded = embedded
        self._mock = mock
        self._files = SchemaFiles(settings.schema.path)
        self._codecs: dict[str, TopicCodec] = {}
        self._registries: dict[tuple[str | None, ...], SchemaRegistry] = {}

    def codec(self, topic: str, options: TopicOptions) -> TopicCodec:
        """The topic's codec, made once. Raises ConfigurationError naming the topic and what to change."""
        found = self._codecs.get(topic)
        if found is None:
            name = self.backend_name(options)
            uses_registry = schema_backend(name).uses_registry
            if self._embedded is not None:
                # A registry in this process is empty at first: nobody has registered anything to be looked up.
                options = dataclasses.replace(options, auto_register=True, use_latest_version=False)
            found = self._codecs[topic] = build_codec(
                self._settings.producers.topic_prefix + topic,
                options,
                self._files,
                self._registry(options) if uses_registry else None,
                name,
                latest_ttl=self._settings.schema.latest_ttl,
            )
        return found

    def backend_name(self, options: TopicOptions) -> str:
        """Name of the topic's schema backend; a topic without a schema is `plain` unless it says otherwise."""
        name = options.schema_backend
        if not options.schema and name == self._settings.schema.backend:
            return "plain"
        return schema_backend(name).mock if self._mock else name

    def _registry(self, options: TopicOptions) -> SchemaRegistry:
        if self._embedded is not None:
            return self._embedded
        schema = self._settings.schema
        user: str | None
        if options.registry_url not in (UNSET, None):
            # A topic's own registry gets only what was given for it: credentials go to the registry they belong to.
            url = options.registry_url
            user = options.registry_user or None
            password, token = _secret(options.registry_password or None), None
            certificate, key_file = None, None
        else:
            url, user = schema.registry_url, schema.user
            password, token = _secret(schema.password), _secret(schema.token)
            certificate, key_file = schema.ssl_certificate, _secret(schema.ssl_key)
        key = (str(url), user, password, token, certificate)
        found = self._registries.get(key)
        if found is None:
            # start-up time: the HTTP client is loaded only where a topic uses a registry
            from deimos_async.schemas.registry import HttpSchemaRegistry, RegistryOptions

            found = self._registries[key] = HttpSchemaRegistry(
                RegistryOptions(
                    urls=tuple(part.strip() for part in str(url).split(",")),
                    user=user,
                    password=password,
                    token=token,
                    ssl_ca=schema.ssl_ca,
                    ssl_certificate=certificate,
                    ssl_key=key_file,
                    request_timeout=schema.request_timeout,
                    deadline=schema.deadline,
                    latest_ttl=schema.latest_ttl,
                    missing_ttl=schema.missing_ttl,
                )
            )
        return found

    def registries(self) -> list[SchemaRegistry]:
        """Every registry that a codec made so far asks."""
        return list(self._registries.values())

    async def close(self) -> None:
        """Close connections; what is known stays known."""
        for registry in self._registries.values():
            await registry.close()


def _secret(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value.get_secret_value())


@dataclass(frozen=True, slots=True)
class PlannedTopic:
    """A declared topic with everything decided."""

    name: str
    kafka_name: str
    options: TopicOptions
    codec: TopicCodec
    is_produced: bool
    is_consumed: bool


@dataclass(frozen=True, slots=True)
class PlannedConsumer:
    """A registered consumer with everything decided but the call, which needs the running application."""

    spec: ConsumerSpec
    topic: PlannedTopic
    kafka_group: str
    handler: HandlerSpec
    convert: Callable[[Any], Any] | None
    policy: OnError
    reraise: bool
    fatal: tuple[FatalError, ...]
    dead_letter_topic: str
    retry_topics: tuple[str, ...]
    """Names in Kafka, in the order in which they are passed."""
    metadata: tuple[Any, ...] = ()
    """SQLAlchemy's MetaData of the tables that it keeps itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an application will run."""

    topics: Mapping[str, PlannedTopic]
    consumers: tuple[PlannedConsumer, ...]
    pollers: tuple[PlannedPoller, ...] = ()


@dataclass(frozen=True, slots=True)
class RequiredTopic:
    """A topic that must exist in its cluster. `source`: the topic whose partition count it takes, or None."""

    cluster: str
    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]
    source: str | None = None
    is_optional: bool = False
    """Made with the others, but its absence is no mistake at start."""


def settings_options(settings: Settings) -> TopicOptions:
    """What the settings say about every topic."""
    return TopicOptions(
        schema=None,
        namespace=None,
        schema_backend=settings.schema.backend,
        cluster="default",
        payload_log=settings.logging.payload_log,
        unknown_fields=settings.schema.unknown_fields,
        auto_register=settings.schema.auto_register,
        use_latest_version=settings.schema.use_latest_version,
        subject_strategy=settings.schema.subject_strategy,
        on_error=settings.consumers.on_error.policy(),
        reraise_errors=settings.consumers.reraise_errors,
        fatal_error=None,
        topic_config={},
    )


def make_plan(
    declared: Declarations,
    options: Mapping[str, TopicOptions],
    settings: Settings,
    codecs: Codecs,
    *,
    fatal_error: FatalError | None,
    dialect: Any,
    events: EventBus,
) -> Plan:
    """Check and decide everything.

    Args:
        declared: The application's declarations, those of its routers included.
        options: Each topic's own options merged with the defaults that were in force.
        fatal_error: The application's.
        dialect: SQLAlchemy's, of the database; None: there is none.
        events: The application's.

    Raises:
        ConfigurationError: Every mistake, each naming the topic, consumer or setting and the change to make.
    """
    problems: list[str] = []
    produced = {producer.topic.name for producer in declared.producers}
    consumed = {_topic_name(spec.topic) for spec in declared.consumers}
    base = settings_options(settings)
    topics: dict[str, PlannedTopic] = {}
    for name in declared.topics:
        merged = merge_options(base, options[name])
        planned = _plan_topic(name, merged, settings, codecs, name in produced, name in consumed, problems)
        if planned is not None:
            topics[name] = planned
    problems += _check_producers(declared.producers, declared.topics)
    if dialect is None:
        problems += _check_outbox(declared.producers, settings)
    consumers = []
    surroundings = _Surroundings(settings, codecs, fatal_error, dialect, events)
    for spec in declared.consumers:
        name = _topic_name(spec.topic)
        if name not in declared.topics:
            problems.append(f"consumer {spec.name!r}: topic {name!r} is not declared; declare it with app.topic(...)")
        elif isinstance(spec.topic, Topic) and declared.topics[name].options != spec.topic.options:
            problems.append(
                f"consumer {spec.name!r}: topic {name!r} was declared elsewhere (another router or application); "
                "include that router too, or declare the topic here"
            )
        consumer = _plan_consumer(spec, topics.get(name), surroundings, problems)
        if consumer is not None:
            consumers.append(consumer)
    problems += _check_groups(declared.consumers, settings)
    pollers = _plan_pollers(declared, problems, has_database=dialect is not None)
    if problems:
        raise ConfigurationError(*problems)
    return Plan(topics, tuple(consumers), pollers)


def _topic_name(topic: Any) -> str:
    return topic.name if isinstance(topic, Topic) else str(topic)


def _plan_topic(
    name: str,
    options: TopicOptions,
    settings: Settings,
    codecs: Codecs,
    is_produced: bool,
    is_consumed: bool,
    problems: list[str],
) -> PlannedTopic | None:
    found = []
    if options.cluster != "default" and options.cluster not in settings.clusters:
        known = ", ".join(sorted(settings.clusters)) or "none"
        found.append(
            f"topic {name!r}: cluster {options.cluster!r} is not in the settings; "
            f"add 'clusters.{options.cluster}.bootstrap_servers' (known: {known})"
        )
    if is_produced and options.key is UNSET:
        found.append(
            f"topic {name!r} is produced to but has no key=; "
            "give Key.field(...), Key.schema(...), Key.plain(), or Key.none() for messages without keys"
        )
    if (options.registry_user or options.registry_password) and not options.registry_url:
        found.append(f"topic {name!r}: registry_user and registry_password belong to registry_url; give that too")
    codec = None
    try:
        codec = codecs.codec(name, options)
    except ConfigurationError as error:
        found += error.problems
    except DeimosError as error:
        found.append(f"topic {name!r}: {error}")
    problems += found
    if found or codec is None:
        return None
    return PlannedTopic(name, settings.producers.topic_prefix + name, options, codec, is_produced, is_consumed)


def _check_producers(producers: Iterable[Producer], topics: Mapping[str, Topic]) -> Iterable[str]:
    for producer in producers:
        known = topics.get(producer.topic.name)
        if known is None or known.options != producer.topic.options:
            yield (
                f"producer {type(producer).__name__}: topic {producer.topic.name!r} was declared elsewhere "
                "(another router or application); include that router too, or declare the topic here"
            )
        yield from (f"producer {type(producer).__name__}: {problem}" for problem in producer._problems())


def _check_outbox(producers: Iterable[Producer], settings: Settings) -> Iterable[str]:
    missing = "there is no database; set 'database.url', or give Deimos(engine=...)"
    if settings.producers.backend == "outbox":
        yield f"setting 'producers.backend' is 'outbox', but {missing}"
    for producer in producers:
        if producer._backend == "outbox":
            where = f"producer {type(producer).__name__}: topic {producer.topic.name!r}"
            yield f"{where} has backend='outbox', but {missing}"


def _plan_pollers(declared: Declarations, problems: list[str], *, has_database: bool) -> tuple[PlannedPoller, ...]:
    if not declared.pollers:
        return ()
    from deimos_async.polling.poller import plan_pollers  # start-up time: loads SQLAlchemy

    if not has_database:
        problems.append("pollers read tables, but there is no database; set 'database.url', or give Deimos(engine=...)")
    return tuple(plan_pollers(declared.pollers, declared.producers, problems))


def _check_groups(specs: Iterable[ConsumerSpec], settings: Settings) -> Iterable[str]:
    seen: dict[tuple[str, str], str] = {}
    for spec in specs:
        group = spec.group or settings.consumers.group
        if group is None:
            continue
        key = (group, _topic_name(spec.topic))
        if key in seen:
            yield (
                f"consumers {seen[key]!r} and {spec.name!r} are both of group {group!r} on topic {key[1]!r}, "
                "so each would see a part of the messages; give one of them another group"
            )
        else:
            seen[key] = spec.name


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What all consumers of an application have in common."""

    settings: Settings
    codecs: Codecs
    fatal_error: FatalError | None
    dialect: Any
    events: EventBus


def _plan_consumer(
    spec: ConsumerSpec, topic: PlannedTopic | None, surroundings: _Surroundings, problems: list[str]
) -> PlannedConsumer | None:
    found: list[str] = []
    settings, codecs = surroundings.settings, surroundings.codecs
    group = spec.group or settings.consumers.group
    if not group:
        found.append(f"consumer {spec.name!r} has no group; give group=..., or set 'consumers.group'")
    general = (surroundings.fatal_error, spec.fatal_error)
    hooks: list[FatalError] = [selects for selects in general if selects is not None]
    if topic is not None and topic.options.fatal_error is not None:
        hooks.append(topic.options.fatal_error)
    function: Callable[..., Any] | None = spec.target
    metadata: tuple[Any, ...] = ()
    if inspect.isclass(spec.target):
        function, metadata = _bind_class(spec, topic, surroundings, hooks, found)
    handler = None
    if function is not None:
        try:
            handler = handler_spec(function, batch=spec.batch, name=spec.name)
        except ConfigurationError as error:
            found += error.problems
    convert = None
    if handler is not None:
        if handler.needs_session and surroundings.dialect is None:
            found.append(
                f"consumer {spec.name!r} takes an AsyncSession, but there is no database; "
                "set 'database.url', or give Deimos(engine=...)"
            )
        if spec.delivery == "effectively_once":
            found += _check_effectively_once(spec, handler, settings.producers.topic_prefix + (group or ""))
        if topic is not None:
            try:
                convert = _converter(spec, handler, topic.name, topic.options, codecs)
            except ConfigurationError as error:
                found += error.problems
    problems += found
    if found or handler is None or topic is None or not group:
        return None
    policy = spec.on_error or topic.options.on_error
    template = settings.consumers.dead_letter_topic
    sends_letters = policy.then in ("dead_letter", "retry_keyed")
    if sends_letters and is_dead_letter_topic(topic.kafka_name, template) and spec.on_error is None:
        # The general policy cannot hold for dead letters themselves; stopping loses none of them.
        policy, sends_letters = dataclasses.replace(policy, then="stop", retry_topics=()), False
    if sends_letters and is_dead_letter_topic(topic.kafka_name, template):
        problems.append(
            f"consumer {spec.name!r} reads {topic.name!r}, which is a dead-letter topic by its name "
            f"('consumers.dead_letter_topic' is {template!r}); there are no dead letters of dead letters: give "
            "on_error=OnError(then='skip') or OnError(then='stop')"
        )
        return None
    if spec.delivery == "at_most_once" and spec.on_error is None:
        policy = dataclasses.replace(policy, attempts=1, retry_topics=())
    if spec.delivery == "at_most_once" and policy.retry_topics:
        problems.append(
            f"consumer {spec.name!r}: delivery='at_most_once' commits before it handles, and a stop would lose what "
            "waits in a retry topic; leave retry_topics out of its on_error, or use 'at_least_once'"
        )
        return None
    if spec.delivery == "effectively_once" and policy.retry_topics:
        problems.append(
            f"consumer {spec.name!r}: with delivery='effectively_once' a crash could leave a message both in its topic "
            "and in a retry topic, and it would count twice; give on_error=OnError(...) without retry_topics"
        )
        return None
    if policy.then == "retry_keyed" and (
        missing := list(_missing_for_keyed_retries(spec, topic, has_database=surroundings.dialect is not None))
    ):
        problems += missing
        return None
    return PlannedConsumer(
        spec=spec,
        topic=topic,
        kafka_group=settings.producers.topic_prefix + group,
        handler=handler,
        convert=convert,
        policy=policy,
        reraise=topic.options.reraise_errors if spec.reraise_errors is None else spec.reraise_errors,
        fatal=tuple(hooks),
        dead_letter_topic=dead_letter_topic(topic.kafka_name, settings.consumers.dead_letter_topic),
        retry_topics=tuple(
            retry_topic(topic.kafka_name, settings.consumers.retry_topic, number)
            for number in range(1, len(policy.retry_topics) + 1)
        ),
        metadata=metadata,
    )


def _check_effectively_once(spec: ConsumerSpec, handler: HandlerSpec, kafka_group: str) -> Iterable[str]:
    if not handler.needs_session:
        yield (
            f"consumer {spec.name!r}: delivery='effectively_once' holds for what is written through the handler's "
            "session, but it takes none; give it a parameter annotated as AsyncSession"
        )
    if len(kafka_group) > LONGEST_GROUP:
        yield (
            f"consumer {spec.name!r}: with delivery='effectively_once' a group's name, with its prefix, has at most "
            f"{LONGEST_GROUP} characters; {kafka_group!r} has {len(kafka_group)}"
        )


def _missing_for_keyed_retries(spec: ConsumerSpec, topic: PlannedTopic, *, has_database: bool) -> Iterable[str]:
    where = f"consumer {spec.name!r}: on_error says then='retry_keyed', by which messages wait in the database"
    if not has_database:
        yield f"{where}, but there is none; set 'database.url', or give Deimos(engine=...)"
    if spec.delivery != "effectively_once":
        yield (
            f"{where}, stored together with the offset; give delivery='effectively_once' (and the handler an "
            "AsyncSession), or another on_error"
        )
    if topic.options.key is UNSET or isinstance(topic.options.key, NoKey):
        yield (
            f"{where} key by key, but topic {topic.name!r} has no keys; give its key= (Key.field(...), Key.schema(...) "
            "or Key.plain()), or another on_error"
        )


def with_codecs(plan: Plan, codecs: Codecs) -> Plan:
    """The same plan, consumers' instances included, with payloads and keys read and written by other codecs.

    Raises:
        ConfigurationError: A topic's schema or key, or a handler's type, cannot be used with them.
    """
    topics = {
        name: dataclasses.replace(topic, codec=codecs.codec(name, topic.options)) for name, topic in plan.topics.items()
    }
    consumers = [
        dataclasses.replace(
            consumer,
            topic=topics[consumer.topic.name],
            convert=_converter(consumer.spec, consumer.handler, consumer.topic.name, consumer.topic.options, codecs),
        )
        for consumer in plan.consumers
    ]
    return Plan(topics, tuple(consumers), plan.pollers)


def _converter(
    spec: ConsumerSpec, handler: HandlerSpec, topic: str, options: TopicOptions, codecs: Codecs
) -> Callable[[Any], Any] | None:
    return payload_converter(
        handler.payload_type,
        backend=codecs.backend_name(options),
        where=f"consumer {spec.name!r}, topic {topic!r}",
    )


def _bind_class(
    spec: ConsumerSpec,
    topic: PlannedTopic | None,
    surroundings: _Surroundings,
    hooks: list[FatalError],
    found: list[str],
) -> tuple[Callable[..., Any] | None, tuple[Any, ...]]:
    """The method of a new instance, and MetaData of the tables that it keeps; None after a mistake."""
    cls = spec.target
    if not issubclass(cls, Consumer):
        found.append(f"consumer {spec.name!r} is a class; derive it from deimos_async.Consumer")
        return None, ()
    wanted, other = ("consume_batch", "consume_message") if spec.batch else ("consume_message", "consume_batch")
    if not hasattr(cls, wanted):
        mode = "batch=True" if spec.batch else "message mode (no batch=True)"
        hint = f"; it has {other}: {'remove' if spec.batch else 'give'} batch=True" if hasattr(cls, other) else ""
        found.append(f"consumer {spec.name!r} needs the method {wanted} for {mode}{hint}")
        return None, ()
    try:
        instance = cls()
    except Exception as error:
        # User code: whatever its constructor raises is a mistake in the declaration.
        found.append(
            f"consumer {spec.name!r} cannot be made without arguments ({type(error).__name__}: {error}); "
            "one instance is made at start, give its constructor no parameters"
        )
        return None, ()
    try:
        metadata = instance._prepare(
            Circumstances(
                name=spec.name,
                key=UNSET if topic is None else topic.options.key,
                options=TopicOptions() if topic is None else topic.options,
                batch=spec.batch,
                delivery=spec.delivery,
                dialect=surroundings.dialect,
                events=surroundings.events,
            )
        )
    except ConfigurationError as error:
        found += error.problems
        return None, ()
    hooks.append(instance.fatal_error)
    return getattr(instance, wanted), tuple(metadata)


def required_topics(plan: Plan, settings: Settings) -> list[RequiredTopic]:
    """Topics that must exist before the start, retry and dead-letter topics after the topics that they belong to."""
    required: dict[tuple[str, str], RequiredTopic] = {}

    def kafka(cluster: str) -> Any:
        return settings.kafka if cluster == "default" else settings.clusters[cluster]

    for topic in plan.topics.values():
        if not (topic.is_produced or topic.is_consumed):
            continue
        options = topic.options
        cluster = kafka(options.cluster)
        required[options.cluster, topic.kafka_name] = RequiredTopic(
            options.cluster,
            topic.kafka_name,
            cluster.partitions if options.partitions is UNSET else options.partitions,
            cluster.replication_factor if options.replication_factor is UNSET else options.replication_factor,
            options.topic_config,
        )
    for consumer in plan.consumers:
        source = required[consumer.topic.options.cluster, consumer.topic.kafka_name]
        limits = {name: value for name, value in source.config.items() if name == "max.message.bytes"}
        for name in (*consumer.retry_topics, consumer.dead_letter_topic):
            # Handlers may raise DeadLetter whatever the policy says, so the topic is made for each consumer.
            is_letters = name == consumer.dead_letter_topic
            if is_letters and is_dead_letter_topic(source.name, settings.consumers.dead_letter_topic):
                continue
            key = (source.cluster, name)
            known = required.get(key)
            needed = not is_letters or consumer.policy.then in ("dead_letter", "retry_keyed")
            required[key] = RequiredTopic(
                source.cluster,
                name,
                source.partitions if known is None else max(known.partitions, source.partitions),
                source.replication_factor if known is None else known.replication_factor,
                limits if known is None else {**limits, **known.config},
                source=source.name,
                is_optional=not needed and (known is None or known.is_optional),
            )
    return list(required.values())

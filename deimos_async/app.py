"""`Deimos`: the application, a thin face over its declarations, its settings and its runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import Unpack

from deimos_async.assembly import Codecs, settings_options
from deimos_async.errors import ConfigurationError, LifecycleError, NotRunningError
from deimos_async.events import EventBus
from deimos_async.health import Health, judge
from deimos_async.producing.backends import DeliveryErrorHandler
from deimos_async.producing.outlet import Outlets, disabled
from deimos_async.producing.producer import Producer
from deimos_async.router import Declaring, Router, topic_options
from deimos_async.running import PARTS, Administration, Ingredients, Running
from deimos_async.telemetry.aliases import WithAliases
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.telemetry.protocol import Provider
from deimos_async.topics import UNSET, FatalError, Topic, TopicOptionArguments, TopicOptions, merge_options

if TYPE_CHECKING:  # start-up time: loaded where they are used
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from deimos_async.assembly import RequiredTopic
    from deimos_async.brokers.protocol import Broker
    from deimos_async.consuming.runner import RunnerStatus
    from deimos_async.database.engines import Database
    from deimos_async.schemas.codec import TopicCodec
    from deimos_async.schemas.protocol import SchemaField
    from deimos_async.schemas.registry import SchemaRegistry
    from deimos_async.settings import Settings
    from deimos_async.web.asgi import WebApp

__all__ = ["AppCodec", "Deimos"]


class Deimos(Declaring):
    """An application: topics, producers and consumers, and how they run.

    Nothing is opened before it runs, but for `codec(...)`. It can be started again after it stopped, in another event
    loop too. Several applications in one process share nothing.
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, Any] | None = None,
        *,
        engine: AsyncEngine | None = None,
        metrics: Provider | None = UNSET,
        tracing: Provider | None = UNSET,
        fatal_error: FatalError | None = None,
        on_delivery_error: DeliveryErrorHandler | None = None,
    ) -> None:
        """Read the settings.

        Args:
            settings: Above the `DEIMOS_*` variables and `deimos.toml`: by dotted names, or nested.
            engine: The application's own AsyncEngine instead of `database.url`. At stop its pool is disposed of in the
                loop that used it; it stays usable.
            metrics, tracing: Providers; default OpenTelemetry, which does nothing until an SDK is set up. None: none.
            fatal_error: `(error, messages) -> bool`: True stops the consumer before any retry.
            on_delivery_error: `(error, messages)`, plain or async: told when a buffered message was not delivered.

        Raises:
            ConfigurationError: Every mistake in the settings at once.
        """
        super().__init__()
        self._arguments: dict[str, Any] = _as_overrides(settings)
        self._settings = _load(self._arguments)
        self._engine = engine
        self._fatal_error = fatal_error
        self._on_delivery_error = on_delivery_error
        self._metrics_provider = metrics
        self._tracing_provider = tracing
        self._defaults = TopicOptions()
        self._options: dict[str, TopicOptions] = {}
        self._running: Running | None = None
        self._starting = False
        self._last_failures: Mapping[str, BaseException] = {}
        self._idle_codecs: Codecs | None = None
        self._idle_questions = 0
        self._mock_backends = False
        self._broker_factory: Callable[[str, Settings], Broker] | None = None
        self._registry: SchemaRegistry | None = None
        self.events = EventBus()
        """`app.events.subscribe("deimos.encode_message", callback)`."""

    # --- settings and declarations -----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force, frozen."""
        return self._settings

    @contextmanager
    def with_settings(self, overrides: Mapping[str, Any]) -> Iterator[Deimos]:
        """Change settings of this application within the block, and restore them, also after an exception.

        Args:
            overrides: By dotted names, `{"kafka.bootstrap_servers": "..."}`, or nested.

        Raises:
            LifecycleError: The application runs.
            ConfigurationError: Every mistake in the settings at once.
        """
        self._refuse_running("settings are changed")
        before = self._arguments, self._settings, self._idle_codecs
        arguments = {**self._arguments, **_as_overrides(overrides)}
        self._settings = _load(arguments)
        self._arguments, self._idle_codecs = arguments, None
        try:
            yield self
        finally:
            self._arguments, self._settings, self._idle_codecs = before

    def defaults(self, **options: Unpack[TopicOptionArguments]) -> None:
        """Set topic options for the topics that follow. Values that are mappings merge; calls add up."""
        self._defaults = merge_options(self._defaults, topic_options("app.defaults", dict(options)))

    def include(self, router: Router) -> None:
        """Take in a router's topics, producers, consumers and pollers; its topics take `defaults` as they stand now.

        Raises:
            ConfigurationError: It is included already, or a topic is declared twice with different options.
        """
        if not isinstance(router, Router):
            raise ConfigurationError(f"include(...) takes a Router, not {type(router).__name__}")
        self._refuse_running("a router is included")
        clashes = [
            f"topic {name!r} is declared here and in an included router with other options; declare it in one place"
            for name, topic in router._declared.topics.items()
            if name in self._declared.topics and self._declared.topics[name].options != topic.options
        ]
        if clashes:
            raise ConfigurationError(*clashes)
        declared = router._include_in(self)
        for topic in declared.topics.values():
            if topic.name not in self._declared.topics:
                self._declared.topics[topic.name] = topic
                self._topic_declared(topic)
        for producer in declared.producers:
            self._declared.producers.append(producer)
            self._producer_declared(producer)
        self._declared.consumers.extend(declared.consumers)
        self._declared.pollers.extend(declared.pollers)

    def _topic_declared(self, topic: Topic) -> None:
        self._refuse_running(f"topic {topic.name!r} is declared")
        self._options[topic.name] = merge_options(self._defaults, topic.options)

    def _producer_declared(self, producer: Producer) -> None:
        self._refuse_running(f"a producer of topic {producer.topic.name!r} is declared")
        producer._outlets = self._current_outlets

    def _refuse_running(self, what: str) -> None:
        if self._running is not None or self._starting:
            raise LifecycleError(f"{what} while the application runs; do it before it starts or after it stopped")

    # --- running -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, *, only: Sequence[str] | None = None) -> AsyncIterator[Deimos]:
        """Run within the block: started when it is entered, drained and closed when it is left.

        Args:
            only: Parts to run, of `"producers"`, `"consumers"`, `"outbox"` and `"pollers"`; default all. Producers
                always run.

        Raises:
            ConfigurationError: Every mistake that can be seen before the first message.
            BrokerUnavailableError: No broker answered before `kafka.connect_timeout`.
            LifecycleError: It runs already.
        """
        if self._running is not None or self._starting:
            raise LifecycleError("the application runs already; an application runs once at a time")
        self._starting = True
        running = None
        try:
            running = Running(self._ingredients(), tuple(only) if only is not None else PARTS)
            self._running = running
            await running.start()
            self._starting = False
            try:
                yield self
            finally:
                await running.stop()
        finally:
            self._starting = False
            self._running = None
            self._last_failures = {} if running is None else dict(running.supervisor.failures)

    @asynccontextmanager
    async def brokers_only(self) -> AsyncIterator[tuple[Mapping[str, Broker], list[RequiredTopic]]]:
        """The clusters that the application uses, connected, and the topics that it needs there. For administration.

        Raises:
            ConfigurationError: Every mistake that can be seen before the first message, but for missing topics.
            BrokerUnavailableError: No broker answered before `kafka.connect_timeout`.
        """
        async with Running(self._ingredients(), PARTS).brokers_only() as opened:
            yield opened

    @asynccontextmanager
    async def administration(self) -> AsyncIterator[Administration]:
        """As `brokers_only`, with everything that is planned: for commands that look into topics and groups."""
        async with Running(self._ingredients(), PARTS).administration() as opened:
            yield opened

    @asynccontextmanager
    async def database_only(self) -> AsyncIterator[Database]:
        """The application's database, `engine=` or `database.url`, without anything else. For administration.

        Raises:
            ConfigurationError: There is none, or only that of an embedded run.
        """
        async with Running(self._ingredients(), PARTS).database_only() as database:
            yield database

    @asynccontextmanager
    async def lifespan(self, asgi_app: Any = None) -> AsyncIterator[None]:
        """For `FastAPI(lifespan=app.lifespan)` and Starlette. A failure to start propagates."""
        async with self.running():
            yield

    def _ingredients(self) -> Ingredients:
        metrics, tracing = self._providers()
        return Ingredients(
            owner=self,
            declared=self._declared,
            options=self._options,
            settings=self._settings,
            engine=self._engine,
            events=self.events,
            metrics=metrics.metrics() if isinstance(metrics, NoTelemetry) else WithAliases(metrics.metrics()),
            tracing=tracing.tracing(),
            fatal_error=self._fatal_error,
            on_delivery_error=self._on_delivery_error,
            mock_backends=self._mock_backends,
            broker_factory=self._broker_factory,
            registry=self._registry,
        )

    def _providers(self) -> tuple[Provider, Provider]:
        default: Provider | None = None
        if UNSET in (self._metrics_provider, self._tracing_provider):
            from deimos_async.telemetry.opentelemetry import OpenTelemetry  # start-up time

            default = OpenTelemetry()

        def chosen(provider: Provider | None) -> Provider:
            if provider is UNSET:
                assert default is not None
                return default
            return NoTelemetry() if provider is None else provider

        return chosen(self._metrics_provider), chosen(self._tracing_provider)

    @property
    def is_running(self) -> bool:
        """Whether it has started and not begun to stop."""
        return self._running is not None and not self._starting

    @property
    def is_ready(self) -> bool:
        """Whether it runs, its schemas are prepared, its consumers have joined and none has failed."""
        return self.is_running and self._started("is_ready").ready

    def consumers(self) -> list[RunnerStatus]:
        """What each consumer is doing now: partitions, messages in flight, lag. Raises NotRunningError."""
        return self._started("consumers()").consumers()

    def health(self) -> Health:
        """Whether it is alive and ready, and why not; in any state. What `/livez` and `/readyz` say."""
        running = self._running
        if running is None:
            return judge("stopped", ready=False, supervised=False, failures=self._last_failures, consumers=())
        return judge(
            "starting" if self._starting else "stopping" if running.stopping else "running",
            ready=running.ready,
            supervised=running.supervisor.is_alive,
            failures=running.supervisor.failures,
            consumers=running.consumers(),
            outbox=running.outbox(),
            pollers=running.poller_statuses(),
        )

    def web(self) -> WebApp:
        """An ASGI application with `/livez`, `/readyz` and `/metrics`: `fastapi_app.mount("/deimos", app.web())`.

        It can be made and asked in any state, and shows neither payloads nor settings. It has no authentication.
        """
        from deimos_async.telemetry.prometheus import Prometheus  # only needed here
        from deimos_async.web.asgi import WebApp  # only needed here

        provider = self._metrics_provider
        return WebApp(self.health, provider.render if isinstance(provider, Prometheus) else None)

    @property
    def failures(self) -> Mapping[str, BaseException]:
        """What broke in this run, or else in the last one, by the name of the consumer or service."""
        if self._running is not None:
            return dict(self._running.supervisor.failures)
        return self._last_failures

    async def wait_failed(self) -> None:
        """Until a consumer or service of this run has broken. Raises NotRunningError."""
        await self._started("wait_failed()").supervisor.wait_failed()

    def _started(self, what: str) -> Running:
        if self._running is None:
            _not_running(what)
        return self._running

    # --- producing, sessions, codecs ---------------------------------------------------------------------------

    def _current_outlets(self) -> Outlets:
        running = self._running
        if running is None or running.outlets is None:
            _not_running("producing")
        return running.outlets

    async def flush(self) -> None:
        """Wait until every message buffered so far (`kafka_async`) was acknowledged or has failed."""
        running = self._started("flush()")
        if running.buffered is not None:
            await running.buffered.flush()

    def disable_producers(self, *producers: Producer) -> AbstractContextManager[None]:
        """Stop all producers, or only those given, within the block and in this context (task) alone.

        Raises:
            ConfigurationError: What is given is no producer of this application.
        """
        for producer in producers:
            if not any(producer is declared for declared in self._declared.producers):
                raise ConfigurationError(
                    f"disable_producers(...) takes producers of this application, as app.producer(...) returned them, "
                    f"not {producer!r}"
                )
        return disabled(self, producers)

    async def backfill(
        self, poller: str, *, chunk_rows: int = 100_000, report: Callable[[int, int], None] | None = None
    ) -> int:
        """Send the whole table of a poller once more, in leased chunks; what `poller APP --backfill NAME` does.

        Any number of processes may do so at the same time; they share the chunks. Broken off, it goes on where it was
        when it is called again. The poller's own work goes on beside it, and may run in other processes.

        Args:
            poller: Its name; `mode="time"`.
            chunk_rows: Rows of a chunk.
            report: Told how many chunks are done, and how many there are.

        Returns:
            How many rows were sent by this call.

        Raises:
            NotRunningError: The application does not run.
            ConfigurationError: There is no poller of that name, or it polls by state.
            DatabaseError: The database cannot be reached or refuses.
        """
        running = self._started("backfill()")
        return await running.backfill(poller, chunk_rows=chunk_rows, report=report or (lambda done, chunks: None))

    def session(self) -> AsyncSession:
        """A new AsyncSession on the application's database; `async with` closes it.

        Raises:
            NotRunningError: The application does not run.
            ConfigurationError: There is no database.
        """
        database = self._started("session()").database
        if database is None:
            raise ConfigurationError("there is no database; set 'database.url', or give Deimos(engine=...)")
        return database.session()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A transaction: commits when the block ends, rolls back when it raises. Messages leave with the commit.

        Inside another one, or inside a handler that took a session, it is a savepoint of that session, and its
        messages go with the outermost commit.

        Raises:
            DeliveryError: From the block's exit: the rows are committed, but a direct backend could not send.
        """
        # start-up time: loads SQLAlchemy
        from deimos_async.database.transactions import enter_scope, leave_scope, open_scope

        outer = open_scope(self)
        if outer is not None:
            async with outer.session.begin_nested():
                yield outer.session
            return
        async with self.session() as session:
            scope, token = enter_scope(self, session)
            try:
                yield session
                await session.commit()
            except BaseException:
                await session.rollback()
                raise
            finally:
                leave_scope(scope, token)

    def codec(self, topic: Topic | str) -> AppCodec:
        """How the topic's payloads and keys become bytes and back; works without a running application.

        Raises:
            ConfigurationError: The topic is not declared, or its schema or key cannot be used.
        """
        name = topic if isinstance(topic, str) else topic.name
        if name not in self._declared.topics:
            raise ConfigurationError(f"topic {name!r} is not declared; declare it with app.topic({name!r}, ...)")
        codec = AppCodec(self, name)
        codec._resolve()
        return codec

    def _codecs(self) -> Codecs:
        """Those of the run, or else a set for questions outside of runs."""
        running = self._running
        if running is not None and running.codecs is not None:
            return running.codecs
        if self._idle_codecs is None:
            self._idle_codecs = Codecs(self._settings, embedded=self._idle_registry(), mock=self._mock_backends)
        return self._idle_codecs

    def _topic_options(self, name: str) -> TopicOptions:
        return merge_options(settings_options(self._settings), self._options[name])

    def _idle_registry(self) -> Any:
        if not self._settings.embedded:
            return None
        from deimos_async.schemas.memory_registry import MemorySchemaRegistry  # only needed embedded

        return MemorySchemaRegistry()


class AppCodec:
    """A topic's codec as users see it. The coroutines may ask the registry the first time, then no more.

    It may be kept: it follows the application's settings, and uses what a run has opened while there is one.
    """

    def __init__(self, app: Deimos, topic: str) -> None:
        self._app = app
        self._topic = topic

    def _resolve(self) -> TopicCodec:
        return self._app._codecs().codec(self._topic, self._app._topic_options(self._topic))

    async def encode_payload(self, payload: Any) -> bytes | None:
        """Coerced, checked and framed bytes. Raises EncodeError."""
        async with self._asking() as codec:
            return await codec.encode_payload(payload)

    async def decode_payload(self, data: bytes | None) -> Any:
        """The value. Raises DecodeError."""
        async with self._asking() as codec:
            return await codec.decode_payload(data)

    async def encode_key(self, key: Any) -> bytes | None:
        """As `encode_payload`, for keys."""
        async with self._asking() as codec:
            return await codec.encode_key(key)

    async def decode_key(self, data: bytes | None) -> Any:
        """As `decode_payload`, for keys."""
        async with self._asking() as codec:
            return await codec.decode_key(data)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[TopicCodec]:
        """Outside of a run nobody would close connections later, perhaps in another loop: the last question does."""
        app = self._app
        codecs = app._codecs()
        codec = self._resolve()
        if codecs is not app._idle_codecs:
            yield codec
            return
        app._idle_questions += 1
        try:
            yield codec
        finally:
            app._idle_questions -= 1
            if not app._idle_questions:
                await codecs.close()

    def coerce(self, payload: Any) -> Any:
        """A new payload made to fit. Raises EncodeError with every field that cannot be."""
        return self._resolve().coerce(payload)

    def validate(self, payload: Any) -> None:
        """Check, converting nothing. Raises EncodeError with every field that is wrong."""
        self._resolve().validate(payload)

    def schema_fields(self) -> Sequence[SchemaField]:
        """Fields of the value schema, in its order."""
        return self._resolve().schema_fields()


def _not_running(what: str) -> NoReturn:
    raise NotRunningError(
        f"{what} needs the running application: use `async with app.running():`, app.lifespan, "
        "or `python -m deimos_async run`"
    )


def _as_overrides(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) and hasattr(settings, "model_dump"):
        settings = settings.model_dump()
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"settings are a mapping or a Settings object, not {type(settings).__name__}")
    from deimos_async.settings import flatten  # start-up time: pydantic is loaded with the first application

    return {".".join(path): value for path, value in flatten(settings)}


def _load(arguments: Mapping[str, Any]) -> Settings:
    from deimos_async.settings import load_settings  # start-up time: pydantic is loaded with the first application

    return load_settings(arguments)

"""Connection options, extra options, errors: what needs no cluster."""

import pickle

import pytest
from aiokafka import errors as kafka
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.kafka_errors import is_refusal, is_too_large, translate, translate_commit
from deimos_async.brokers.protocol import ConsumerOptions, ProducerOptions
from deimos_async.errors import BrokerError, BrokerUnavailableError, ConfigurationError
from deimos_async.settings import KafkaSettings


class SilentListener:
    async def on_assigned(self, partitions):
        pass

    async def on_revoked(self, partitions):
        pass

    async def on_lost(self, partitions):
        pass


def consumer(extra=None, cluster_extra=None):
    broker = KafkaBroker("default", KafkaOptions(extra=cluster_extra or {}))
    return broker.consumer(ConsumerOptions("g", ("t",), extra=extra or {}), SilentListener())


def producer(**options):
    return KafkaBroker("default", KafkaOptions()).producer(ProducerOptions(**options))


def test_options_take_every_connection_setting():
    settings = KafkaSettings(
        bootstrap_servers="a:1,b:2",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password="pass-1",
        ssl_key="key-1",
        ssl_key_password="pass-2",
        connect_timeout=3.0,
        request_timeout=4.5,
        extra={"metadata_max_age_ms": 1000},
    )
    options = KafkaOptions.from_settings(settings)
    assert (options.sasl_password, options.ssl_key, options.ssl_key_password) == ("pass-1", "key-1", "pass-2")
    for field in KafkaOptions.__dataclass_fields__:
        value = getattr(settings, field)
        assert getattr(options, field) == (value.get_secret_value() if hasattr(value, "get_secret_value") else value)


def test_repr_shows_no_secret():
    options = KafkaOptions(
        sasl_password="secret", ssl_key="secret", ssl_key_password="secret", ssl_certificate="secret", ssl_ca="secret",
        extra={"x": "secret"},
    )  # fmt: skip
    assert "secret" not in repr(options)


def test_durations_are_passed_in_milliseconds():
    assert KafkaOptions(request_timeout=4.5).connection("kafka")["request_timeout_ms"] == 4500


def test_user_and_password_are_passed_for_scram():
    options = KafkaOptions(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-256", sasl_username="u", sasl_password="p"
    )
    arguments = options.connection("kafka")
    assert (arguments["sasl_mechanism"], arguments["sasl_plain_username"], arguments["sasl_plain_password"]) == (
        "SCRAM-SHA-256",
        "u",
        "p",
    )
    assert "ssl_context" not in arguments


def test_tls_checks_host_names_unless_told_otherwise():
    strict = KafkaOptions(security_protocol="SSL").connection("kafka")["ssl_context"]
    lax = KafkaOptions(security_protocol="SSL", ssl_check_hostname=False).connection("kafka")["ssl_context"]
    assert (strict.check_hostname, lax.check_hostname) == (True, False)
    assert strict.verify_mode == lax.verify_mode != 0


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"ssl_ca": "/no/such/file"}, "clusters.x.ssl_ca"),
        ({"ssl_ca": "-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----"}, "clusters.x.ssl_ca"),
        ({"ssl_certificate": "/no/such/file", "ssl_key": "secret"}, "clusters.x.ssl_certificate"),
        (
            {"ssl_certificate": "-----BEGIN CERTIFICATE-----secret", "ssl_key": "-----BEGIN PRIVATE KEY-----secret"},
            "clusters.x.ssl_key",
        ),
    ],
)
def test_certificate_that_cannot_be_used_names_its_setting_and_shows_nothing(options, setting):
    with pytest.raises(ConfigurationError, match=setting) as caught:
        KafkaBroker("x", KafkaOptions(security_protocol="SSL", **options))
    assert "secret" not in str(caught.value)


async def some_token():
    return "token-1"


async def test_token_provider_is_asked_for_fresh_tokens():
    options = KafkaOptions(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauth_token_provider=f"{__name__}:some_token",
    )
    provider = options.connection("kafka")["sasl_oauth_token_provider"]
    assert await provider.token() == "token-1"


@pytest.mark.parametrize("path", [None, "no_colon", "no_such_module:x", "json:no_such_name", "json:__name__"])
def test_token_provider_that_cannot_be_used_is_named(path):
    options = KafkaOptions(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider=path
    )
    with pytest.raises(ConfigurationError, match=r"kafka\.sasl_oauth_token_provider"):
        KafkaBroker("default", options)


@pytest.mark.parametrize(
    "name", ["enable_auto_commit", "auto_offset_reset", "key_deserializer", "value_deserializer", "group_id", "loop"]
)
async def test_consumer_option_that_breaks_a_guarantee_is_refused(name):
    for extra in ({"extra": {name: "x"}}, {"cluster_extra": {name: "x"}}):
        with pytest.raises(ConfigurationError, match=f"'{name}'"):
            consumer(**extra)


@pytest.mark.parametrize("name", ["acks", "enable_idempotence", "transactional_id", "partitioner", "linger_ms"])
async def test_producer_option_that_breaks_a_guarantee_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        producer(extra={name: "x"})


async def test_every_refused_option_is_reported_at_once():
    with pytest.raises(ConfigurationError) as caught:
        consumer({"enable_auto_commit": True, "no_such_option": 1})
    assert len(caught.value.problems) == 2


async def test_unknown_option_of_the_cluster_is_refused():
    with pytest.raises(ConfigurationError, match=r"'kafka\.extra'.*'no_such_option' is unknown"):
        KafkaBroker("default", KafkaOptions(extra={"no_such_option": 1}))


async def test_options_of_one_kind_of_client_do_not_trouble_the_others():
    broker = KafkaBroker(
        "default", KafkaOptions(extra={"fetch_max_wait_ms": 100, "transaction_timeout_ms": 1, "retry_backoff_ms": 5})
    )
    broker.consumer(ConsumerOptions("g", ("t",)), SilentListener())
    with pytest.raises(ConfigurationError, match="transaction_timeout_ms"):
        broker.producer(ProducerOptions())


async def test_sticky_assignor_is_refused():
    class Own(StickyPartitionAssignor):
        pass

    for assignor in (StickyPartitionAssignor, Own):
        with pytest.raises(ConfigurationError, match="StickyPartitionAssignor"):
            consumer({"partition_assignment_strategy": (assignor,)})


async def test_compression_without_its_library_is_refused():
    with pytest.raises(ConfigurationError, match="'brotli' is unknown"):
        producer(compression="brotli")


@pytest.mark.parametrize(
    ("error", "kind", "retriable"),
    [
        (kafka.KafkaConnectionError("x"), BrokerUnavailableError, True),
        (kafka.RequestTimedOutError(), BrokerUnavailableError, True),
        (kafka.KafkaTimeoutError(), BrokerUnavailableError, True),
        (ConnectionResetError(), BrokerUnavailableError, True),
        (kafka.NotLeaderForPartitionError(), BrokerError, True),
        (kafka.GroupAuthorizationFailedError("g"), BrokerError, False),
        (kafka.UnknownError(), BrokerError, False),
    ],
)
def test_error_of_the_client_becomes_ours(error, kind, retriable):
    translated = translate(error, "topic 't'")
    assert type(translated) is kind
    assert translated.retriable is retriable
    assert str(translated).startswith("topic 't': " + type(error).__name__)
    assert pickle.loads(pickle.dumps(translated)).retriable is retriable


@pytest.mark.parametrize(
    ("error", "lost", "retriable"),
    [
        (kafka.CommitFailedError("x"), True, False),
        (kafka.IllegalStateError("x"), True, False),
        (kafka.UnknownMemberIdError(), True, False),
        (kafka.RequestTimedOutError(), False, True),
        (kafka.GroupCoordinatorNotAvailableError(), False, True),
        (kafka.GroupAuthorizationFailedError("g"), False, False),
    ],
)
def test_error_of_a_commit_tells_lost_from_away(error, lost, retriable):
    translated = translate_commit(error, "g")
    assert (translated.lost, translated.retriable) == (lost, retriable)


def test_refusals_are_certain_and_sequence_errors_are_not():
    assert is_refusal(kafka.TopicAuthorizationFailedError("t"))
    assert is_refusal(kafka.MessageSizeTooLargeError())
    assert not is_refusal(kafka.OutOfOrderSequenceNumber())
    assert not is_refusal(kafka.UnknownError())
    assert is_too_large(kafka.RecordListTooLargeError())
    assert not is_too_large(kafka.InvalidTopicError())

"""Defaults are promises: who changes one changes it here, too, and writes it into the changelog."""

from __future__ import annotations

from typing import Any

from deimos_async.settings import setting_fields
from deimos_async.topics import Backoff, OnError

DEFAULTS: dict[str, Any] = {
    "kafka.bootstrap_servers": "localhost:9092",
    "kafka.security_protocol": "PLAINTEXT",
    "kafka.sasl_mechanism": None,
    "kafka.sasl_username": None,
    "kafka.sasl_password": None,
    "kafka.sasl_oauth_token_provider": None,
    "kafka.sasl_allow_cleartext": False,
    "kafka.ssl_ca": None,
    "kafka.ssl_certificate": None,
    "kafka.ssl_key": None,
    "kafka.ssl_key_password": None,
    "kafka.ssl_check_hostname": True,
    "kafka.client_id": "deimos-async",
    "kafka.connect_timeout": 10.0,
    "kafka.request_timeout": 30.0,
    "kafka.create_topics": False,
    "kafka.partitions": 1,
    "kafka.replication_factor": -1,
    "kafka.extra": {},
    "clusters": {},
    "schema.backend": "avro_schema_registry",
    "schema.path": "schemas",
    "schema.registry_url": "http://localhost:8081",
    "schema.user": None,
    "schema.password": None,
    "schema.token": None,
    "schema.ssl_ca": None,
    "schema.ssl_certificate": None,
    "schema.ssl_key": None,
    "schema.auto_register": True,
    "schema.use_latest_version": False,
    "schema.subject_strategy": "topic",
    "schema.unknown_fields": "drop",
    "schema.request_timeout": 5.0,
    "schema.deadline": 30.0,
    "schema.latest_ttl": 300.0,
    "schema.missing_ttl": 10.0,
    "producers.backend": "kafka",
    "producers.topic_prefix": "",
    "producers.disabled": False,
    "producers.delivery_timeout": 60.0,
    "producers.compression": "none",
    "producers.max_batch_bytes": 131072,
    "producers.max_request_bytes": 1048588,
    "producers.buffer_messages": 10000,
    "consumers.group": None,
    "consumers.on_error.attempts": 3,
    "consumers.on_error.backoff_initial": 0.1,
    "consumers.on_error.backoff_maximum": 30.0,
    "consumers.on_error.then": "dead_letter",
    "consumers.reraise_errors": False,
    "consumers.session_timeout": 45.0,
    "consumers.heartbeat_interval": 3.0,
    "consumers.rebalance_timeout": 60.0,
    "consumers.max_poll_interval": 300.0,
    "consumers.shutdown_timeout": 30.0,
    "consumers.commit_interval": 1.0,
    "consumers.max_records": 500,
    "consumers.max_buffered_bytes": 67108864,
    "consumers.max_buffered": 2000,
    "consumers.fetch_max_bytes": 16777216,
    "consumers.max_partition_fetch_bytes": 1048576,
    "consumers.spring_headers": False,
    "consumers.retry_topic": "{topic}-retry-{n}",
    "consumers.instance_id": None,
    "consumers.on_lost_offset": "stop",
    "consumers.stall_timeout": 120.0,
    "consumers.loop_lag_warning": 1.0,
    "consumers.dead_letter_topic": "{topic}-dlt",
    "database.url": None,
    "logging.payload_log": "full",
    "embedded": False,
}


def test_settings_have_the_defaults_that_are_pinned() -> None:
    found = {".".join(path): field.get_default(call_default_factory=True) for path, field in setting_fields()}
    assert found == DEFAULTS


def test_policy_is_three_attempts_then_the_dead_letter_topic() -> None:
    assert OnError() == OnError(
        attempts=3,
        backoff=Backoff(initial=0.1, maximum=30.0),
        then="dead_letter",
        retry_topics=(),
        include=(),
        exclude=(),
        wait_on=(),
    )

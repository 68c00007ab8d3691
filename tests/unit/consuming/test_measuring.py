"""Figures are added up and told as differences."""

from __future__ import annotations

import logging

import pytest

from deimos_async.consuming.measuring import Measurements
from deimos_async.message import TopicPartition
from deimos_async.telemetry import names
from deimos_async.telemetry.mock import Measurement, Mock

TAGS = {"topic": "orders", "consumer_group": "billing", "consumer": "bill"}


def measurements(mock: Mock) -> Measurements:
    return Measurements(mock, topic="orders", group="billing", consumer="bill")


def test_only_what_is_new_is_told() -> None:
    mock = Mock()
    measured = measurements(mock)
    measured.tell()
    assert not mock.increments
    measured.handled += 3
    measured.tell()
    measured.handled += 4
    measured.retries += 1
    measured.tell()
    measured.tell()
    assert mock.increments == [
        Measurement(names.HANDLED, 3, TAGS),
        Measurement(names.HANDLED, 4, TAGS),
        Measurement(names.RETRIES, 1, TAGS),
    ]


def test_failures_are_told_by_the_class_of_the_error() -> None:
    mock = Mock()
    measured = measurements(mock)
    measured.failed["KeyError"] += 2
    measured.failed["DecodeError"] += 1
    measured.tell()
    measured.failed["KeyError"] += 1
    measured.tell()
    assert mock.count(names.FAILED, **{"error.type": "KeyError"}) == 3
    assert mock.count(names.FAILED, **{"error.type": "DecodeError"}) == 1
    assert mock.count(names.FAILED, consumer="bill") == 4


def test_fetched_messages_have_the_tags_of_the_conventions() -> None:
    mock = Mock()
    measured = measurements(mock)
    measured.fetched += 5
    measured.tell()
    assert mock.increments == [
        Measurement(
            names.CONSUMED,
            5,
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "poll",
                "messaging.destination.name": "orders",
                "messaging.consumer.group.name": "billing",
            },
        )
    ]


def test_messages_for_other_groups_are_counted_and_logged_whenever_their_number_has_doubled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "deimos_async.consuming")
    mock = Mock()
    measured = measurements(mock)
    for offset in range(100):
        measured.pass_over(TopicPartition("orders", 2), {offset})
    assert [record.getMessage() for record in caplog.records] == [
        f"bill: messages for other groups are passed over, {count} up to now, the last one orders[2]@{count - 1}"
        for count in (1, 2, 4, 8, 16, 32, 64)
    ]
    measured.tell()
    assert mock.increments == [Measurement(names.SKIPPED, 100, TAGS)]


def test_each_message_for_another_group_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "deimos_async.consuming")
    measurements(Mock()).pass_over(TopicPartition("orders", 2), {9, 7})
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert told == ["bill: orders[2]@7 is for another group", "bill: orders[2]@9 is for another group"]

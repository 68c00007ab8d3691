"""Which messages an assertion takes, and what a failed one says."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import pytest

from deimos_async.errors import EncodeError
from deimos_async.testing import SentHeaders, SentMessage
from deimos_async.testing.expectation import Expectation, explain_missing, explain_unwanted


def text_key(key: Any) -> str:
    if isinstance(key, dict):
        raise EncodeError("no text")
    return str(key)


def sent(
    payload: Any = None,
    key: Any = None,
    partition_key: str | bytes | None = None,
    headers: list[tuple[str, bytes | None]] | None = None,
) -> SentMessage:
    return SentMessage("invoices", payload, key, partition_key, SentHeaders(headers or []), text_key)


def fits(message: SentMessage, **expected: Any) -> bool:
    return not Expectation(**expected).differences(message)


def test_what_is_not_given_is_not_checked() -> None:
    message = sent({"a": 1}, "k", "p", [("h", b"1")])
    assert fits(message)
    assert fits(message, payload={"a": 1})
    assert fits(message, key="k")


@pytest.mark.parametrize("option", ["payload", "key", "partition_key", "headers"])
def test_none_is_checked_and_not_taken_as_anything(option: str) -> None:
    assert fits(sent(), **{option: None})
    assert not fits(sent({"a": 1}, "k", "p", [("h", b"1")]), **{option: None})


@pytest.mark.parametrize("key", [0, "", False])
def test_falsy_key_is_checked(key: Any) -> None:
    assert fits(sent(key=key), key=key)
    assert not fits(sent(key="k"), key=key)


def test_key_is_compared_as_the_topic_reads_it() -> None:
    assert fits(sent(key="1"), key=1)
    assert not fits(sent(key="1"), key=2)
    assert not fits(sent(key="1"), key={"order_id": 1})
    assert fits(sent(key={"order_id": 1}), key={"order_id": ANY})


def test_headers_of_dead_letters_and_retries_count_where_they_are_named() -> None:
    letter = sent(headers=[("origin", b"web"), ("deimos-dlq-attempts", b"3"), ("deimos-retry-due", b"1")])
    assert fits(letter, headers={"origin": "web"})
    assert fits(letter, headers={"origin": "web", "deimos-dlq-attempts": "3"})
    assert not fits(letter, headers={"origin": "web", "deimos-dlq-attempts": "4"})
    assert not fits(letter, headers={"deimos-dlq-attempts": "3"})


def test_partition_keys_are_text_or_bytes() -> None:
    assert fits(sent(partition_key="p"), partition_key=b"p")
    assert fits(sent(partition_key=b"p"), partition_key="p")
    assert not fits(sent(partition_key=b"p"), partition_key="q")


def test_text_is_expected_of_bytes_where_there_is_no_schema() -> None:
    assert fits(sent(b"text"), payload="text")
    assert not fits(sent(b"text"), payload="other")


def test_headers_are_compared_completely_as_mapping_or_pairs() -> None:
    message = sent(headers=[("a", b"1"), ("b", None)])
    assert fits(message, headers={"b": None, "a": "1"})
    assert fits(message, headers=[("a", b"1"), ("b", None)])
    assert fits(message, headers={"a": ANY, "b": None})
    assert not fits(message, headers={"a": "1"})
    assert not fits(message, headers={"a": "1", "b": None, "c": "2"})


def test_repeated_headers_are_compared_in_their_order() -> None:
    message = sent(headers=[("a", b"1"), ("a", b"2")])
    assert fits(message, headers=[("a", "1"), ("a", "2")])
    assert not fits(message, headers=[("a", "2"), ("a", "1")])
    assert not fits(message, headers={"a": "2"})


def test_trace_headers_count_only_where_they_are_named() -> None:
    message = sent(headers=[("a", b"1"), ("traceparent", b"00-1-2-01")])
    assert fits(message, headers={"a": "1"})
    assert fits(message, headers={"a": "1", "traceparent": ANY})
    assert not fits(message, headers={"a": "1", "traceparent": "other"})


def test_headers_of_a_sent_message_equal_a_mapping() -> None:
    headers = sent(headers=[("origin", b"billing")]).headers
    assert headers == {"origin": "billing"}
    assert headers == [("origin", b"billing")]
    assert headers != {"origin": "other"}
    assert headers != {}
    assert headers["origin"] == b"billing"


def test_failure_shows_the_closest_message_its_differences_and_what_else_was_sent() -> None:
    messages = [
        sent({"order_id": 1, "amount": 1.0, "currency": "EUR"}, "1", "1"),
        sent(None, "2", "2"),
        sent({"order_id": 2, "amount": 9.0, "currency": "EUR"}, "2", "here", [("origin", b"billing")]),
    ]
    expectation = Expectation({"order_id": 2, "amount": 9.5, "currency": "EUR"}, key="2")
    assert explain_missing(expectation, "invoices", messages, {"orders": 3}).splitlines() == [
        "expected on topic 'invoices': payload={'order_id': 2, 'amount': 9.5, 'currency': 'EUR'}, key='2'",
        "the closest message is number 3 of 3; 1 difference:",
        "  payload.amount: expected 9.5, is 9.0",
        "sent to 'invoices':",
        "  1. payload={'order_id': 1, 'amount': 1.0, 'currency': 'EUR'}, key='1'",
        "  2. payload=None, key='2'",
        "  3. payload={'order_id': 2, 'amount': 9.0, 'currency': 'EUR'}, key='2', partition_key='here', "
        "headers={'origin': b'billing'}",
        "sent to other topics: 'orders' (3)",
    ]


def test_failure_says_that_nothing_was_sent_to_the_topic() -> None:
    expectation = Expectation({"a": 1}, partial=True)
    assert explain_missing(expectation, "invoices", [], {}).splitlines() == [
        "expected on topic 'invoices': at least payload={'a': 1}",
        "nothing was sent to it",
    ]


def test_failure_of_not_sent_shows_which_message_it_was() -> None:
    messages = [sent({"a": 1}, "1"), sent({"a": 2}, "2")]
    assert explain_unwanted(Expectation({"a": 2}), "invoices", messages, {"orders": 1}).splitlines() == [
        "not expected on topic 'invoices': payload={'a': 2}",
        "but message 2 is such",
        "sent to 'invoices':",
        "  1. payload={'a': 1}, key='1'",
        "  2. payload={'a': 2}, key='2'",
        "sent to other topics: 'orders' (1)",
    ]
    assert "but messages 1, 2 are such" in explain_unwanted(Expectation(), "invoices", messages, {})


def test_failure_with_many_messages_lists_the_first_ones() -> None:
    lines = explain_missing(Expectation({"a": -1}), "invoices", [sent({"a": n}) for n in range(50)], {}).splitlines()
    assert lines[-1] == "  ... and 30 more"
    assert len(lines) == 25

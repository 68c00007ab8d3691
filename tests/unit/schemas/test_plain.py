"""Payloads without a schema."""

from typing import Any

import pytest

from deimos_async.errors import ConfigurationError, EncodeError
from deimos_async.schemas.plain import plain

schema = plain.compile("")


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (b"", b""),
        ("", b""),
        ("grün", b"gr\xc3\xbcn"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
    ],
)
def test_text_is_utf8_and_bytes_stay(payload: Any, data: bytes) -> None:
    schema.validate(payload)
    assert schema.coerce(payload) == data
    assert schema.encode(payload) == data
    assert type(schema.encode(payload)) is bytes


@pytest.mark.parametrize("payload", [{"a": 1}, 5, None, [b"a"], True])
def test_other_types_are_refused_with_what_to_do(payload: Any) -> None:
    for call in (schema.coerce, schema.validate, schema.encode):
        with pytest.raises(EncodeError, match=r"bytes or str, not \w+; give json.dumps") as caught:
            call(payload)
        assert type(payload).__name__ in str(caught.value)


def test_text_without_utf8_form_is_an_error() -> None:
    with pytest.raises(EncodeError, match="surrogate"):
        schema.encode("\ud800")


def test_decoding_gives_the_bytes_from_the_offset() -> None:
    assert schema.decode(b"abc") == b"abc"
    assert schema.decode(b"abc", 1) == b"bc"
    assert schema.decoder()(b"abc", 0) == b"abc"


def test_there_are_no_fields_and_no_key_schemas() -> None:
    assert schema.schema_fields() == ()
    assert plain.missing_types("") == ()
    assert not plain.supports_key_schemas
    with pytest.raises(ConfigurationError, match=r"'id'; use Key\.plain"):
        plain.key_schema(schema, "id")

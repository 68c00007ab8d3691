"""The Confluent wire format, byte by byte."""

import pytest

from deimos_async.errors import DecodeError
from deimos_async.schemas.wire import FRAME_BYTES, frame, frame_prefix, schema_id

GOLDEN = [
    (1, b"\x00\x00\x00\x00\x01"),
    (258, b"\x00\x00\x00\x01\x02"),
    (16_909_060, b"\x00\x01\x02\x03\x04"),
    (2**31 - 1, b"\x00\x7f\xff\xff\xff"),
]


@pytest.mark.parametrize(("id", "prefix"), GOLDEN)
def test_id_is_four_bytes_big_endian_after_a_zero(id: int, prefix: bytes) -> None:
    assert frame_prefix(id) == prefix
    assert len(prefix) == FRAME_BYTES
    assert frame(id, b"body") == prefix + b"body"
    assert schema_id(prefix + b"body") == id
    assert schema_id(prefix) == id


@pytest.mark.parametrize("id", [0, -1, 2**31, 2**40])
def test_number_that_is_no_id_is_not_written(id: int) -> None:
    with pytest.raises(ValueError, match="schema ids are between 1 and 2147483647"):
        frame_prefix(id)


@pytest.mark.parametrize("length", range(FRAME_BYTES))
def test_bytes_shorter_than_the_frame_are_an_error_that_tells_their_number(length: int) -> None:
    with pytest.raises(DecodeError, match=f"{length} bytes are too short"):
        schema_id(b"\x00" * length)


@pytest.mark.parametrize(("data", "shown"), [(b'{"a": 1}', "0x7b"), (b"\xff\x00\x00\x00\x01", "0xff")])
def test_other_first_byte_is_shown(data: bytes, shown: str) -> None:
    with pytest.raises(DecodeError, match=f"the first byte is {shown}, not 0x00"):
        schema_id(data)


@pytest.mark.parametrize(("data", "id"), [(b"\x00" * 6, "0"), (b"\x00\xff\xff\xff\xff", "-1")])
def test_id_that_no_registry_gives_is_an_error(data: bytes, id: str) -> None:
    with pytest.raises(DecodeError, match=f"schema id {id} in the bytes"):
        schema_id(data)

"""The data types of §1.5 at their edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.protocol.errors import MalformedPacket
from midge.protocol.wire import (
    VARIABLE_INTEGER_MAX,
    decode_string,
    encode_binary,
    encode_string,
    encode_two_bytes,
    encode_variable_integer,
    read_binary,
    read_string,
    read_two_bytes,
    read_variable_integer,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16_383, "ff7f"),
        (16_384, "808001"),
        (2_097_151, "ffff7f"),
        (2_097_152, "80808001"),
        (268_435_455, "ffffff7f"),
    ],
)
def test_variable_byte_integers_are_as_in_table_1_1(value: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert encode_variable_integer(value) == data
    assert read_variable_integer(b"\xff" + data + b"\xff", 1, 1 + len(data)) == (value, 1 + len(data))


@pytest.mark.parametrize("value", [-1, VARIABLE_INTEGER_MAX + 1])
def test_a_number_that_four_bytes_cannot_hold_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError):
        encode_variable_integer(value)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_a_number_that_two_bytes_cannot_hold_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError):
        encode_two_bytes(value)


@pytest.mark.parametrize(
    "encoded", ["", "80", "ffff", "8000", "808000", "80808080", "8080808001", "ffffffff7f"]
)
def test_a_variable_byte_integer_cut_overlong_or_of_five_bytes_is_malformed(encoded: str) -> None:
    data = bytes.fromhex(encoded)
    with pytest.raises(MalformedPacket):
        read_variable_integer(data, 0, len(data))


@given(st.binary(max_size=100), st.integers(0, 100))
def test_a_field_never_reads_past_the_end_it_is_given(value: bytes, cut: int) -> None:
    data = encode_binary(value)
    assert read_binary(data + b"more", 0, len(data)) == (value, len(data))
    if cut < len(data):
        for read in (read_binary, read_string):
            with pytest.raises(MalformedPacket):
                read(data, 0, cut)


def test_two_bytes_cut_are_malformed() -> None:
    assert read_two_bytes(b"\x01\x02", 0, 2) == (0x102, 2)
    with pytest.raises(MalformedPacket):
        read_two_bytes(b"\x01\x02", 1, 2)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))
def test_every_string_without_null_and_surrogates_comes_back(value: str) -> None:
    data = encode_string(value)
    assert read_string(data, 0, len(data)) == (value, len(data))


@pytest.mark.parametrize(
    "value", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\0", b"a\0b", b"\xf4\x90\x80\x80"]
)
def test_strings_that_utf_8_or_mqtt_forbid_are_malformed(value: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_string(value)


@pytest.mark.parametrize("value", ["\0", "\ud800", "x" * 65_536])
def test_strings_that_cannot_be_sent_are_a_value_error(value: str) -> None:
    with pytest.raises(ValueError):
        encode_string(value)

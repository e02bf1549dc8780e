"""The PROXY protocol's header, version 2: byte by byte, and what is no header."""

from __future__ import annotations

import pytest

from midge.listeners.proxy import ProxyError, parse_header

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IPV4 = SIGNATURE + bytes.fromhex("2111000c c0000201 7f000001 d431 075b")
IPV6 = SIGNATURE + bytes.fromhex("21210024" + "20010db8" + "00" * 11 + "01" + "00" * 15 + "01" + "d431075b")


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (IPV4, "192.0.2.1:54321"),
        (IPV6, "2001:db8::1:54321"),
        (SIGNATURE + bytes.fromhex("21110010 c0000201 7f000001 d431 075b 04000101"), "192.0.2.1:54321"),  # TLV
        (SIGNATURE + bytes.fromhex("20000000"), None),  # LOCAL: the proxy's health check
        (SIGNATURE + bytes.fromhex("21000000"), None),  # PROXY, but of an unknown family
    ],
)
def test_the_address_is_read_and_what_follows_is_left(header: bytes, address: str | None) -> None:
    assert parse_header(header + b"\x10") == (address, len(header))
    assert all(parse_header(header[:end]) is None for end in range(len(header)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x10",  # CONNECT
        b"PROXY TCP4 192.0.2.1 127.0.0.1 54321 1883\r\n",  # version 1
        SIGNATURE + bytes.fromhex("31110000"),  # version 3
        SIGNATURE + bytes.fromhex("22110000"),  # an unknown command
        SIGNATURE + bytes.fromhex("2111ffff"),  # longer than anybody needs
        SIGNATURE + bytes.fromhex("21110004 c0000201"),  # too short for its family
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyError):
        parse_header(data)

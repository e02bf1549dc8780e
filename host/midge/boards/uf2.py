"""UF2 files: blocks of 512 bytes, each with its address, that a boot loader's drive takes in any order.
Knows nothing of drives. https://github.com/microsoft/uf2
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

BLOCK_BYTES = 512
_HEADER = struct.Struct("<8I")  # magic, magic, flags, address, payload's size, number, count, family or file size
_MAGIC = (0x0A324655, 0x9E5D5157)
_MAGIC_END = 0x0AB16F30
_NOT_MAIN_FLASH = 0x00000001
_HAS_FAMILY = 0x00002000

# The block that picotool puts before an RP2350's against errata E10: it belongs to no chip.
ABSOLUTE_FAMILY = 0xE48BFF57
FLASH_START = 0x10000000  # XIP of RP2040 and RP2350


@dataclass(frozen=True)
class Contents:
    families: frozenset[int]
    blocks: int
    start: int
    end: int


class Uf2Error(ValueError):
    """The file isn't whole UF2; the text says why."""


def read(data: bytes) -> Contents:
    """Checks every block, and that none is missing. `Uf2Error`."""
    if not data or len(data) % BLOCK_BYTES:
        raise Uf2Error("its length isn't a multiple of 512 bytes: it was cut, or isn't UF2")
    seen: dict[int, set[int]] = {}
    counts: dict[int, int] = {}
    addresses = []
    for at in range(0, len(data), BLOCK_BYTES):
        *magic, flags, address, size, number, count, family = _HEADER.unpack_from(data, at)
        if tuple(magic) != _MAGIC or data[at + 508 : at + 512] != struct.pack("<I", _MAGIC_END):
            raise Uf2Error(f"block {at // BLOCK_BYTES} has no UF2 magic")
        if size > 476 or number >= count:
            raise Uf2Error(f"block {at // BLOCK_BYTES} is damaged")
        if flags & _NOT_MAIN_FLASH:
            continue
        if not flags & _HAS_FAMILY:
            raise Uf2Error("it doesn't say which chip it is for")
        if family != ABSOLUTE_FAMILY:
            addresses += [address, address + size]
            if counts.setdefault(family, count) != count or number in seen.setdefault(family, set()):
                raise Uf2Error(f"block {at // BLOCK_BYTES} doesn't fit the others")
            seen[family].add(number)
    if not seen:
        raise Uf2Error("there is nothing for the flash in it")
    for family, numbers in seen.items():
        if len(numbers) != counts[family]:
            raise Uf2Error(f"{counts[family] - len(numbers)} of {counts[family]} blocks are missing")
    return Contents(frozenset(seen), len(data) // BLOCK_BYTES, min(addresses), max(addresses))

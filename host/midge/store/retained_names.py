"""Topic filters against the retained messages' names on disk: jumps from match to match.
Knows names and a way to find the next one; no other table.
"""

from __future__ import annotations

from collections.abc import Callable

# Names looked at in one call: each is a search in the tree, some microseconds.
_STEPS_MAX = 1000

# UTF-8 has no byte 0xFF.
_AFTER_ALL = b"\xff"
_AFTER_DOLLAR = b"$\xff"


def matching(
    topic_filter: str, after: bytes, seek: Callable[[bytes], bytes | None]
) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
    """The next range of names that match *topic_filter*, as (first, end), none of them before *after*; and where
    to go on (None: that was all). The range is None if none was found in the time that one call may take.
    *seek* gives the first name that is not before its argument.

    Names are topic names with NUL between the levels: what is below `a/b` lies from b"a\\0b" to b"a\\0b\\x01".
    """
    levels = [level.encode() for level in topic_filter.split("/")]
    at: bytes | None = after
    for _ in range(_STEPS_MAX):
        name = None if at is None else seek(at)
        if name is None:
            return None, None
        match, at = _compare(levels, name)
        if match is not None:
            return match, match[1]
    return None, at


def _compare(levels: list[bytes], name: bytes) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
    """The range of names that match, *name* being the first of them; or None, and where the next match can be
    (None: there is none)."""
    parts = name.split(b"\0")
    for i, level in enumerate(levels):
        if level == b"#":  # what is on this level or below matches, and so does the level above
            if i:
                return (name, _end(parts[:i])), None
            if name.startswith(b"$"):  # [MQTT-4.7.2-1]
                return None, _AFTER_DOLLAR
            return (name, b"$" if name < b"$" else _AFTER_ALL), None
        if i >= len(parts):
            return None, name + b"\0"
        if level == b"+":
            if i == 0 and name.startswith(b"$"):
                return None, _AFTER_DOLLAR
            continue
        if level == parts[i]:
            continue
        if level > parts[i]:
            return None, b"\0".join([*parts[:i], level])
        return None, _next_wildcard(levels, parts, i)
    if len(parts) > len(levels):
        return None, _end(parts[: len(levels)])
    return (name, name + b"\0"), None


def _next_wildcard(levels: list[bytes], parts: list[bytes], before: int) -> bytes | None:
    for i in range(before - 1, -1, -1):
        if levels[i] == b"+":
            return _end(parts[: i + 1])
    return None


def _end(parts: list[bytes]) -> bytes:
    """The first name that is neither this one nor below it."""
    return b"\0".join(parts) + b"\x01"

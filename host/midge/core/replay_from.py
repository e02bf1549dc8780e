"""`$replay/FROM/FILTER` taken apart: where to begin, and which topics.
Knows text and time, not what is kept.
"""

from __future__ import annotations

import re
from datetime import datetime

from midge.protocol.topics import split_shared

PREFIX = "$replay/"

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,9})([smhdw])")
# RFC 3339 with Z, which is ISO 8601 with every part and no other offset.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?[Zz]")
# Numbers of messages are SQLite's row identifiers.
_NUMBER_MAX = 2**63 - 1

AGES = "a whole number and s, m, h, d or w, such as 90s, 1h or 30d"
_FROM = f"FROM must be all, an age ({AGES}), a time in UTC (2026-11-25T08:00:00Z) or after/NUMBER"


class ReplayError(Exception):
    """There is no such replay; the message says why."""


def is_replay(topic_filter: str) -> bool:
    """Also with a share name, which is refused."""
    return topic_filter.startswith(PREFIX) or (
        topic_filter.startswith("$share/") and split_shared(topic_filter)[1].startswith(PREFIX)
    )


class Start:
    """What a client asked for: messages beyond number `after`, or from the time `since` on (s since the epoch) if
    that isn't None, and of them those that match `topic_filter`."""

    __slots__ = ("after", "since", "topic_filter")

    def __init__(self, topic_filter: str, after: int, since: float | None) -> None:
        self.topic_filter = topic_filter
        self.after = after
        self.since = since


def parse_replay(text: str, now: float) -> Start:
    """*text* is a valid topic filter that begins with PREFIX. ReplayError: FROM or FILTER can't be."""
    word, _, topic_filter = text[len(PREFIX) :].partition("/")
    after, since = 0, None
    if word == "after":
        number, _, topic_filter = topic_filter.partition("/")
        if not (number.isascii() and number.isdigit() and int(number) <= _NUMBER_MAX):
            raise ReplayError(f"after/{number}: that is not the number of a message")
        after = int(number)
    elif word != "all":
        age_s = parse_age(word)
        since = _time(word) if age_s is None else now - age_s
    if not topic_filter:
        raise ReplayError("a topic filter must follow: $replay/FROM/FILTER")
    if topic_filter[0] == "$":
        raise ReplayError(f"nothing is kept of topics that begin with $ ({topic_filter})")
    return Start(topic_filter, after, since)


def parse_age(text: str) -> float | None:
    """s; None: it is no age."""
    found = _AGE.fullmatch(text)
    return None if found is None else float(int(found[1]) * _UNIT_S[found[2]])


def _time(text: str) -> float:
    if _TIME.fullmatch(text) is None:
        raise ReplayError(f"{text or 'nothing'}: {_FROM}")
    try:
        # Before 3.11 it takes no Z, and it never takes more than microseconds.
        whole, _, fraction = text[:-1].upper().partition(".")
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
    except ValueError as error:
        raise ReplayError(f"{text}: {error}") from None

"""Topic names and filters; what matches what is in test_vectors.py."""

from __future__ import annotations

import pytest

from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.topics import check_topic_filter, check_topic_name, matches, overlap, split_shared


@pytest.mark.parametrize(
    ("topic_filter", "parts"),
    [
        ("$share/group/a/+", ("group", "a/+")),
        ("$share/g//", ("g", "/")),
        ("$share/g/$SYS/#", ("g", "$SYS/#")),
        ("a/b", (None, "a/b")),
        ("$shared/g/a", (None, "$shared/g/a")),
        ("$share", (None, "$share")),
    ],
)
def test_a_shared_subscription_is_split_into_group_and_filter(
    topic_filter: str, parts: tuple[str | None, str]
) -> None:
    check_topic_filter(topic_filter)
    assert split_shared(topic_filter) == parts


@pytest.mark.parametrize("check", [check_topic_name, check_topic_filter])
def test_a_topic_has_at_most_65535_bytes(check: type) -> None:
    check("ü" * 32_767)
    check("a" * 65_535)
    with pytest.raises(ProtocolError):
        check("ü" * 32_768)
    with pytest.raises(ProtocolError):
        check("a" * 65_536)


@pytest.mark.parametrize("check", [check_topic_name, check_topic_filter])
def test_a_null_character_is_malformed(check: type) -> None:
    with pytest.raises(MalformedPacket):
        check("a\0b")


def test_matching_takes_time_in_proportion_to_the_filter_however_it_is_made() -> None:
    # amqtt's matcher went exponential on such filters (GHSA-2hjf-7455-w946).
    assert not matches("+/" * 10_000 + "b", "a/" * 10_000 + "a")
    assert matches("+/" * 10_000 + "#", "a/" * 10_000 + "a")


@pytest.mark.parametrize(
    ("one", "other", "do"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "+/b", True),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b/#", False),
        ("a/+/c/#", "a/b/#", True),
        ("a/+/c/#", "a/b/c", True),
        ("a/+/c/#", "a/b", False),
        ("#", "x", True),
        ("+", "a/b", False),
    ],
)
def test_filters_overlap_if_a_topic_name_matches_both(one: str, other: str, do: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is do

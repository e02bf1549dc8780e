"""ACL files: which rule decides, what a subscription is granted, and errors that name the line."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.access.acl import Acl, covers, load, overlap
from midge.access.errors import AccessFileError
from midge.protocol.topics import matches


def read(tmp_path: Path, text: str) -> Acl:
    path = tmp_path / "acl"
    path.write_text(text)
    return load(path)


RULES = """\
topic read open/#
user anna
topic a/#
topic deny a/secret/#
topic write only/written
topic read two words
user bert
topic read p/bert/denied
pattern readwrite p/%u/#
pattern deny p/+/denied
pattern read c/%c
"""


@pytest.mark.parametrize(
    ("username", "topic", "may_read", "may_publish"),
    [
        (None, "open/x", True, False),
        (None, "a/x", False, False),
        ("anna", "open/x", False, False),
        ("anna", "a", True, True),
        ("anna", "a/secret/x", False, False),
        ("anna", "only/written", False, True),
        ("anna", "two words", True, False),
        ("anna", "p/anna/x", True, True),
        ("anna", "p/anna/denied", False, False),
        ("anna", "p/bert/x", False, False),
        ("bert", "p/bert/denied", True, False),  # the user's own rules come before the patterns
        ("anna", "c/me", True, False),
        (None, "c/me", True, False),
        (None, "p//x", False, False),
        ("+", "p/x/y", False, False),
        ("anna", "$SYS/x", False, False),
    ],
)
def test_the_first_rule_that_matches_decides(
    tmp_path: Path, username: str | None, topic: str, may_read: bool, may_publish: bool
) -> None:
    permissions = read(tmp_path, RULES).permissions("me", username)
    for _ in range(2):  # the second answer is remembered
        assert (permissions.may_read(topic), permissions.may_publish(topic)) == (may_read, may_publish)


@pytest.mark.parametrize(
    ("topic_filter", "granted"),
    [
        ("#", True),
        ("a/#", True),
        ("+/secret/#", True),
        ("a/secret/#", False),
        ("a/secret/x", False),
        ("only/written", False),
        ("other/+", False),
        ("$SYS/#", False),
        ("$share/group/a/x", True),
        ("$share/group/a/secret/#", False),
        ("p/anna/denied", False),
        ("p/+/x", True),
        ("c/me", True),
        ("c/you", False),
    ],
)
def test_a_subscription_is_granted_if_anything_could_come(
    tmp_path: Path, topic_filter: str, granted: bool
) -> None:
    assert read(tmp_path, RULES).permissions("me", "anna").may_subscribe(topic_filter) is granted


def test_a_client_identifier_that_is_a_wildcard_gets_nothing_of_patterns(tmp_path: Path) -> None:
    permissions = read(tmp_path, "pattern c/%c\n").permissions("#", None)
    assert not permissions.may_read("c/x") and not permissions.may_subscribe("#")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user\n", "acl:1: user without a name"),
        ("# comment\n\ntopic\n", "acl:3: a rule without a topic"),
        ("topic both a\n", "acl:1: 'both' is not allowed: read, write, readwrite or deny"),
        ("topic a#\n", "acl:1: "),
        ("nonsense\n", "acl:1: 'nonsense' is not allowed: user, topic or pattern"),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AccessFileError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


LEVELS = st.lists(st.sampled_from(["a", "b", "$c", ""]), min_size=1, max_size=4)
TOPICS = LEVELS.map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(st.sampled_from(["a", "b", "$c", "", "+"]), max_size=3), st.sampled_from([[], ["#"]]))
    .map(lambda parts: "/".join(parts[0] + parts[1]))
    .filter(bool)
)


@given(FILTERS, FILTERS, TOPICS)
def test_filters_overlap_where_a_topic_matches_both_and_cover_what_they_say(
    one: str, other: str, topic: str
) -> None:
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other) and overlap(other, one)
    if covers(one, other) and matches(other, topic):
        assert matches(one, topic)


# Every way to match a filter of FILTERS, "x" standing for a level that none of them names. The empty topic
# name is no valid one, but what "/#" and "+" share; granting it gives nobody anything.
EVERY_TOPIC = [
    "/".join(levels) for count in range(1, 5) for levels in product(("a", "b", "$c", "", "x"), repeat=count)
]


@given(FILTERS, FILTERS)
def test_filters_overlap_if_and_only_if_a_topic_shows_it(one: str, other: str) -> None:
    assert overlap(one, other) is any(matches(one, topic) and matches(other, topic) for topic in EVERY_TOPIC)

"""The board's plain topic matcher is the oracle of the host's trie, its remembered routes and its retained messages.

The two were written apart from each other (STYLE.md, "Three codecs, one truth"); the board's is fifteen lines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.core.message import Message
from midge.core.retained import Retained
from midge.core.routing import Routing, Subscription
from midge.protocol import topics

from .test_routing import session

DEVICE = Path(__file__).resolve().parents[3] / "device"


@pytest.fixture(scope="module")
def board_matches() -> Callable[[str, str], bool]:
    spec = importlib.util.spec_from_file_location("midge_broker_as_oracle", DEVICE / "midge_broker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEVICE))
        spec.loader.exec_module(module)
    matches: Callable[[str, str], bool] = module.matches
    return matches


# Few levels, so that filters and topics meet; empty ones and $ are where matchers differ.
_levels = st.sampled_from(["a", "b", "ab", "", "$s", "é"])
topic_names = st.lists(_levels, min_size=1, max_size=4).map("/".join).filter(bool)
topic_filters = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(_levels | st.just("+"), max_size=4),
    st.sampled_from([[], ["#"], ["+"]]),
).filter(bool)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_routes_are_what_the_board_would_match(board_matches: Callable[[str, str], bool], data: Any) -> None:
    """Subscriptions come and go between the questions, so that remembered routes are asked too."""
    routing = Routing()
    there: dict[str, Any] = {}
    names = data.draw(st.lists(topic_names, min_size=1, max_size=6))
    for topic_filter in data.draw(st.lists(topic_filters, max_size=12)):
        if topic_filter in there:
            assert routing.remove(there.pop(topic_filter), topic_filter)
        else:
            there[topic_filter] = session(topic_filter)
            routing.add(Subscription(there[topic_filter], topic_filter, 0))
        for topic in names:
            found = {target.session.client_id for target in routing.route(topic).targets}
            assert found == {each for each in there if board_matches(each, topic)}, topic


@settings(max_examples=100, deadline=None)
@given(names=st.lists(topic_names, max_size=12, unique=True), topic_filter=topic_filters)
def test_retained_messages_are_what_the_board_would_match(
    board_matches: Callable[[str, str], bool], names: list[str], topic_filter: str
) -> None:
    retained = Retained()
    for name in names:
        retained.set(Message(name, b"x", 0, True))
    found = [message.topic for portion in retained.matching(topic_filter) for message in portion]
    assert sorted(found) == sorted(name for name in names if board_matches(topic_filter, name))


@settings(max_examples=200, deadline=None)
@given(topic_filter=topic_filters, topic=topic_names)
def test_the_hosts_plain_matcher_agrees(
    board_matches: Callable[[str, str], bool], topic_filter: str, topic: str
) -> None:
    assert topics.matches(topic_filter, topic) == board_matches(topic_filter, topic)

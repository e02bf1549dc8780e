"""What `midge pub` is made of, without a broker: the pacer, and lines of JSON."""

import base64
import json

import pytest

from midge.cli.connection import Failure
from midge.cli.json_lines import Drafts
from midge.cli.message_format import Message, as_json
from midge.cli.options import Options
from midge.cli.pub import Pacer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_messages_leave_evenly_and_what_was_missed_is_not_caught_up_with() -> None:
    clock = Clock()
    pacer = Pacer(10, clock)
    assert pacer.wait_s() == 0
    pacer.count()
    assert pacer.wait_s() == pytest.approx(0.1, abs=0.1)
    left = []
    for _ in range(30):
        clock.now += pacer.wait_s()
        left.append(clock.now)
        pacer.count()
    assert left[-1] - left[0] == pytest.approx(2.9)
    clock.now += 60
    sent = 0
    while not pacer.wait_s():
        pacer.count()
        sent += 1
    assert sent <= 2


def test_without_a_rate_only_a_delay_makes_wait() -> None:
    clock = Clock()
    pacer = Pacer(0, clock)
    pacer.count()
    assert pacer.wait_s() == 0
    pacer.delay(2)
    assert pacer.wait_s() == 2
    clock.now += 2
    assert pacer.wait_s() == 0


def _options(level: int = 4, topic: str | None = None) -> Options:
    options = Options()
    options.protocol_level = level
    options.topics = [topic] if topic else []
    return options


def test_what_sub_prints_is_read_back() -> None:
    properties = {"content-type": "x/y", "user-properties": [("k", "v"), ("k", "w")], "correlation-data": b"\xff\0"}
    message = Message("a/b", b"\xff\0", 2, True, 7, properties)  # type: ignore[arg-type]
    draft = Drafts(_options(5)).read(as_json(message))
    assert draft[:4] == ("a/b", b"\xff\0", 2, True)
    assert draft.properties is not None
    assert draft.properties.ContentType == "x/y"
    assert draft.properties.UserProperty == [("k", "v"), ("k", "w")]
    assert draft.properties.CorrelationData == b"\xff\0"


def test_the_command_line_says_what_a_line_leaves_open() -> None:
    drafts = Drafts(_options(topic="t"))
    assert drafts.read(b'{"payload": {"a": 1}}') == ("t", b'{"a": 1}', 0, False, None)
    assert drafts.read(b'{"topic": "u", "payload": "on"}')[:2] == ("u", b"on")


@pytest.mark.parametrize(("line", "why"), [
    (b"plain", "line 1 of stdin: Expecting value"),
    (b"[]", "not a JSON object"),
    (b"{}", "no topic to publish to: null"),
    (b'{"topic": "a/#"}', 'no topic to publish to: "a/#"'),
    (b'{"topic": "a", "qos": 3}', "qos 3 isn't 0, 1 or 2"),
    (b'{"topic": "a", "payload_base64": "?"}', "line 1"),
    (json.dumps({"topic": "a", "correlation-data_base64": base64.b64encode(b"1").decode(),
                 "message-expiry-interval": -1}).encode(), "not within"),
])  # fmt: skip
def test_a_line_that_cannot_be_used_is_named(line: bytes, why: str) -> None:
    with pytest.raises(Failure, match=why.replace("?", "[?]")):
        Drafts(_options(5)).read(line)

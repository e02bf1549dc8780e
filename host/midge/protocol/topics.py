"""Topic names and topic filters: which are valid, and which match (MQTT 5.0 §4.7, §4.8.2).
Knows neither bytes nor subscriptions.
"""

from __future__ import annotations

from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.reasons import ReasonCode

_SHARE = "$share/"

# A character is at most 4 bytes of UTF-8, so that shorter text can't exceed the 65,535 bytes of
# [MQTT-4.7.3-3] and needn't be encoded to find out.
_SURELY_SHORT = 65_535 // 4


def check_topic_name(topic: str) -> None:
    """Raise ProtocolError unless *topic* may stand in a PUBLISH or a will."""
    _check_text(topic, "topic name")
    if "+" in topic or "#" in topic:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, f"wildcard in the topic name {topic!r} [MQTT-3.3.2-2] [MQTT-4.7.1-1]"
        )


def check_topic_filter(topic_filter: str) -> None:
    """Raise ProtocolError unless *topic_filter* may stand in a SUBSCRIBE.

    $share/... has to be a shared subscription in 3.1.1 too, where it could be an ordinary filter: we
    offer shared subscriptions to both, as Mosquitto does.
    """
    _check_text(topic_filter, "topic filter")
    if topic_filter.startswith(_SHARE):
        group, slash, topic_filter = topic_filter[len(_SHARE) :].partition("/")
        if not group or "+" in group or "#" in group:
            raise _invalid_filter(f"share name {group!r} [MQTT-4.8.2-1] [MQTT-4.8.2-2]")
        if not slash or not topic_filter:
            raise _invalid_filter("shared subscription without a topic filter [MQTT-4.8.2-2]")
    if "#" in topic_filter:
        rest = topic_filter[:-1]
        if "#" in rest or topic_filter[-1] != "#" or (rest and rest[-1] != "/"):
            raise _invalid_filter(f"{topic_filter!r}: # must be the whole last level [MQTT-4.7.1-2]")
    if "+" in topic_filter and any("+" in level and level != "+" for level in topic_filter.split("/")):
        raise _invalid_filter(f"{topic_filter!r}: + must be a whole level [MQTT-4.7.1-3]")


def split_shared(topic_filter: str) -> tuple[str | None, str]:
    """(group, filter) of a valid $share/group/filter; (None, *topic_filter*) of any other."""
    if not topic_filter.startswith(_SHARE):
        return None, topic_filter
    group, _, topic_filter = topic_filter[len(_SHARE) :].partition("/")
    return group, topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether *topic* matches *topic_filter*, both valid, the filter not of a shared subscription."""
    if topic_filter == topic:
        return True
    # [MQTT-4.7.2-1]: a filter that starts with a wildcard doesn't match a topic that starts with $.
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    filter_levels = topic_filter.split("/")
    levels = topic.split("/")
    if filter_levels[-1] == "#":
        del filter_levels[-1]
        if len(levels) < len(filter_levels):  # "sport/#" also matches "sport" (§4.7.1.2)
            return False
    elif len(levels) != len(filter_levels):
        return False
    return all(wanted == "+" or wanted == level for wanted, level in zip(filter_levels, levels, strict=False))


def overlap(one: str, other: str) -> bool:
    """Whether there are topic names that match both filters, which don't begin with $."""
    levels, others = one.split("/"), other.split("/")
    for level, its in zip(levels, others, strict=False):
        if level == "#" or its == "#":
            return True
        if level != its and level != "+" and its != "+":
            return False
    if len(levels) == len(others):
        return True
    longer = max(levels, others, key=len)
    return longer[min(len(levels), len(others)) :] == ["#"]  # "sport/#" also matches "sport"


def _check_text(text: str, what: str) -> None:
    if not text:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"empty {what} [MQTT-4.7.3-1]")
    if "\0" in text:
        raise MalformedPacket(f"null character in the {what} {text!r} [MQTT-4.7.3-2]")
    if len(text) > _SURELY_SHORT and len(text.encode("utf-8", "surrogatepass")) > 65_535:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"{what} longer than 65,535 bytes [MQTT-4.7.3-3]")


def _invalid_filter(message: str) -> ProtocolError:
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, f"invalid topic filter: {message}")

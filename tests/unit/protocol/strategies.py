"""Packets of every type and version, as hypothesis makes them up."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from midge.protocol import packets as p
from midge.protocol import reasons

VERSIONS = (3, 4, 5)

flags = st.integers(0, 1)
two_bytes = st.integers(0, 0xFFFF)
two_bytes_not_0 = st.integers(1, 0xFFFF)
four_bytes = st.integers(0, 0xFFFF_FFFF)
packet_ids = two_bytes_not_0
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
binary = st.binary(max_size=40)
topics = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0+#"), min_size=1, max_size=20
)
levels = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0+#/$"), max_size=5)
subscription_identifiers = st.integers(1, 268_435_455)


@st.composite
def _filters(draw: st.DrawFn) -> str:
    parts = draw(st.lists(levels | st.just("+"), min_size=1, max_size=5))
    if draw(st.booleans()):
        parts[-1] = "#"
    if draw(st.integers(0, 4)) == 0:
        parts = ["$share", "group", *parts]
        if len(parts) == 3 and not parts[-1]:
            parts[-1] = "a"
    return "/".join(parts) or "a"


filters = cache(_filters)

# name of the property: (its values, the packets that have it)
PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "payload_format_indicator": (flags, "PUBLISH WILL"),
    "message_expiry_interval": (four_bytes, "PUBLISH WILL"),
    "content_type": (text, "PUBLISH WILL"),
    "response_topic": (topics, "PUBLISH WILL"),
    "correlation_data": (binary, "PUBLISH WILL"),
    "subscription_identifier": (st.lists(subscription_identifiers, min_size=1, max_size=1), "SUBSCRIBE"),
    "session_expiry_interval": (four_bytes, "CONNECT CONNACK"),
    "assigned_client_identifier": (text, "CONNACK"),
    "server_keep_alive": (two_bytes, "CONNACK"),
    "authentication_method": (text, "CONNECT CONNACK AUTH"),
    "request_problem_information": (flags, "CONNECT"),
    "will_delay_interval": (four_bytes, "WILL"),
    "request_response_information": (flags, "CONNECT"),
    "response_information": (text, "CONNACK"),
    "server_reference": (text, "CONNACK"),
    "reason_string": (text, "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"),
    "receive_maximum": (two_bytes_not_0, "CONNECT CONNACK"),
    "topic_alias_maximum": (two_bytes, "CONNECT CONNACK"),
    "topic_alias": (two_bytes_not_0, "PUBLISH"),
    "maximum_qos": (flags, "CONNACK"),
    "retain_available": (flags, "CONNACK"),
    "user_property": (
        st.lists(st.tuples(text, text), min_size=1, max_size=3),
        "CONNECT CONNACK PUBLISH WILL PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK "
        "DISCONNECT AUTH",
    ),
    "maximum_packet_size": (st.integers(1, 0xFFFF_FFFF), "CONNECT CONNACK"),
    "wildcard_subscription_available": (flags, "CONNACK"),
    "subscription_identifier_available": (flags, "CONNACK"),
    "shared_subscription_available": (flags, "CONNACK"),
}


@cache
def properties(kind: str, version: int = 5) -> st.SearchStrategy[Any]:
    """None, or a dictionary that is not empty."""
    if version != 5:
        return st.none()
    having = {name: values for name, (values, kinds) in PROPERTIES.items() if kind in kinds.split()}
    return st.fixed_dictionaries({}, optional=having).map(lambda found: found or None)


@cache
@st.composite
def wills(draw: st.DrawFn, version: int) -> p.Will:
    return p.Will(
        draw(topics),
        draw(binary),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        draw(properties("WILL", version)),
    )


@cache
@st.composite
def connects(draw: st.DrawFn, version: int) -> p.Connect:
    username = draw(st.none() | text)
    password = draw(st.none() | binary) if version == 5 or username is not None else None
    return p.Connect(
        draw(text),
        draw(st.booleans()),
        draw(two_bytes),
        version,
        draw(st.booleans()) if version != 5 else False,
        draw(st.none() | wills(version)),
        username,
        password,
        draw(properties("CONNECT", version)),
    )


@cache
@st.composite
def publishes(draw: st.DrawFn, version: int) -> p.Publish:
    qos = draw(st.integers(0, 2))
    return p.Publish(
        draw(topics | st.sampled_from(("a", "b/c"))),
        draw(binary | st.binary(min_size=100, max_size=300)),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(packet_ids) if qos else 0,
        draw(st.none() | properties("PUBLISH", version)),
    )


@cache
@st.composite
def subscribes(draw: st.DrawFn, version: int) -> p.Subscribe:
    subscriptions = []
    for topic_filter in draw(st.lists(filters(), min_size=1, max_size=4)):
        subscription = p.Subscription(topic_filter, draw(st.integers(0, 2)))
        if version == 5:
            subscription.no_local = draw(st.booleans()) and not topic_filter.startswith("$share/")
            subscription.retain_as_published = draw(st.booleans())
            subscription.retain_handling = draw(st.integers(0, 2))
        subscriptions.append(subscription)
    return p.Subscribe(draw(packet_ids), subscriptions, draw(properties("SUBSCRIBE", version)))


@cache
def acknowledgements(version: int) -> st.SearchStrategy[Any]:
    kinds = (p.Puback, p.Pubrec, p.Pubrel, p.Pubcomp)
    return st.one_of(
        [st.builds(kind, packet_ids, _codes(kind, version), _properties_of(kind, version)) for kind in kinds]
    )


def _codes(kind: type, version: int) -> st.SearchStrategy[int]:
    allowed = {**reasons.FROM_SERVER, **reasons.FROM_CLIENT}[kind.__name__.upper()]
    return st.sampled_from(sorted(allowed)) if version == 5 else st.just(0)


def _properties_of(kind: type, version: int) -> st.SearchStrategy[Any]:
    return properties(kind.__name__.upper(), version)


@cache
def from_client(version: int) -> st.SearchStrategy[Any]:
    """Any packet of a client, CONNECT left out."""
    kinds = [
        publishes(version),
        acknowledgements(version),
        subscribes(version),
        st.builds(
            p.Unsubscribe,
            packet_ids,
            st.lists(filters(), min_size=1, max_size=4),
            properties("UNSUBSCRIBE", version),
        ),
        st.builds(p.Pingreq),
        st.builds(p.Disconnect, _codes(p.Disconnect, version), _properties_of(p.Disconnect, version)),
    ]
    if version == 5:
        kinds.append(_auths(reasons.FROM_CLIENT["AUTH"]))
    return st.one_of(kinds)


@cache
def from_server(version: int) -> st.SearchStrategy[Any]:
    """Any packet of a server."""
    subacks = reasons.FROM_SERVER["SUBACK"] if version == 5 else reasons.SUBACK_311
    unsubacks = st.lists(st.sampled_from(sorted(reasons.FROM_SERVER["UNSUBACK"])), min_size=1, max_size=4)
    kinds = [
        _connacks(version),
        publishes(version),
        acknowledgements(version),
        st.builds(
            p.Suback,
            packet_ids,
            st.lists(st.sampled_from(sorted(subacks)), min_size=1, max_size=4),
            properties("SUBACK", version),
        ),
        st.builds(
            p.Unsuback,
            packet_ids,
            unsubacks if version == 5 else st.just([]),
            properties("UNSUBACK", version),
        ),
        st.builds(p.Pingresp),
    ]
    if version == 5:
        codes = st.sampled_from(sorted(reasons.FROM_SERVER["DISCONNECT"]))
        kinds += [
            st.builds(p.Disconnect, codes, properties("DISCONNECT")),
            _auths(reasons.FROM_SERVER["AUTH"]),
        ]
    return st.one_of(kinds)


@cache
@st.composite
def _connacks(draw: st.DrawFn, version: int) -> p.Connack:
    codes = reasons.FROM_SERVER["CONNACK"] if version == 5 else reasons.CONNACK_311
    code = draw(st.sampled_from(sorted(codes)))
    is_present = draw(st.booleans()) and code == 0 and version != 3
    return p.Connack(is_present, code, draw(properties("CONNACK", version)))


@st.composite
def _auths(draw: st.DrawFn, codes: frozenset[int]) -> p.Auth:
    found = dict(draw(properties("AUTH")) or {})
    found["authentication_method"] = draw(text)
    return p.Auth(draw(st.sampled_from(sorted(codes))), found)

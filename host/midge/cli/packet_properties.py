"""MQTT 5.0 properties of a tool's packets: from -D on the command line, or by mosquitto's names, to paho's.
Knows nothing of connections.
"""

import os
from collections.abc import Iterable

from paho.mqtt import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from midge.cli.options import Options, UsageError

_PACKET_TYPES = {
    "connect": PacketTypes.CONNECT,
    "publish": PacketTypes.PUBLISH,
    "subscribe": PacketTypes.SUBSCRIBE,
    "unsubscribe": PacketTypes.UNSUBSCRIBE,
    "disconnect": PacketTypes.DISCONNECT,
    "will": PacketTypes.WILLMESSAGE,
}

# paho's names of the integers among the property types, MQTT 5.0 §1.5.
_INTEGER_MOST = {
    "Byte": 0xFF,
    "Two Byte Integer": 0xFFFF,
    "Four Byte Integer": 0xFFFF_FFFF,
    "Variable Byte Integer": 268_435_455,
}

# The properties of a PUBLISH: mosquitto's name and paho's attribute.
OF_PUBLISH = {
    "content-type": "ContentType",
    "response-topic": "ResponseTopic",
    "correlation-data": "CorrelationData",
    "payload-format-indicator": "PayloadFormatIndicator",
    "message-expiry-interval": "MessageExpiryInterval",
    "topic-alias": "TopicAlias",
    "subscription-identifier": "SubscriptionIdentifier",
    "user-properties": "UserProperty",
}


def new_properties(command: str) -> Properties:
    """None yet, for that packet type."""
    return Properties(_PACKET_TYPES[command])  # type: ignore[no-untyped-call]


def make_properties(options: Options, command: str) -> Properties | None:
    """The -D properties for one packet type; None if there are none. Raises `UsageError`."""
    return properties_of(
        command, ((identifier, values) for name, identifier, values in options.properties if name == command)
    )


def properties_of(command: str, given: Iterable[tuple[str, tuple[str, ...]]]) -> Properties | None:
    """The same from identifiers and their values (two for user-property)."""
    chosen = list(given)
    if not chosen:
        return None
    properties = new_properties(command)
    for identifier, values in chosen:
        name = "".join(word.capitalize() for word in identifier.split("-")).replace("Qos", "QoS")
        try:
            setattr(properties, name, _property_value(properties, name, values))
        except (MQTTException, ValueError, KeyError) as error:
            told = " ".join((command, identifier, *values))
            raise UsageError(f"Invalid --property {told}: {error}") from None
    return properties


def _property_value(properties: Properties, name: str, values: tuple[str, ...]) -> object:
    if name == "TopicAliasMaximum":
        raise UsageError("topic-alias-maximum isn't there: midge sub doesn't resolve aliases.")
    spaced = {spaced.replace(" ", ""): spaced for spaced in properties.names}
    if name not in spaced:
        raise UsageError("Invalid property name given in --property argument.")
    kind = properties.types[properties.properties[properties.names[spaced[name]]][0]]
    if kind == "UTF-8 String Pair":
        return values
    if kind == "UTF-8 Encoded String":
        return values[0]
    if kind == "Binary Data":
        return os.fsencode(values[0])
    number = int(values[0])
    most = _INTEGER_MOST[kind]
    if not 0 <= number <= most:
        raise ValueError(f"not within 0 and {most}")
    return number


def connect_properties(options: Options) -> Properties | None:
    if options.protocol_level != 5:
        return None
    properties = make_properties(options, "connect")
    expiry_s = options.session_expiry_s
    if expiry_s is None or hasattr(properties, "SessionExpiryInterval"):
        return properties
    properties = properties or new_properties("connect")
    properties.SessionExpiryInterval = expiry_s
    return properties

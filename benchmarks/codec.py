"""What the host's codec costs: microseconds and bytes allocated per packet.

Run: python benchmarks/codec.py. The time is the best of several rounds, since everything else on the machine only adds
to it; the bytes are those that live on with the decoded packets, the chunk itself not counted.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode, encode_properties, publish_parts

ROUNDS = 15
SECONDS_PER_ROUND = 0.05
PACKETS_PER_CHUNK = 400

TOPIC = "sensors/kitchen/temperature"
PAYLOAD = bytes(range(64))
PROPERTIES: p.Properties = {
    "message_expiry_interval": 3600,
    "content_type": "text/plain",
    "user_property": [("unit", "C")],
}


def chunk(packets: list[p.Packet], version: int) -> bytes:
    return b"".join(encode(packet, version) for packet in packets)


def publishes(qos: int, properties: p.Properties | None = None, topics: int = 1) -> list[p.Packet]:
    return [
        p.Publish(f"{TOPIC}/{i % topics}", PAYLOAD, qos, packet_id=i + 1 if qos else 0, properties=properties)
        for i in range(PACKETS_PER_CHUNK)
    ]


def mixed_sizes() -> list[p.Packet]:
    return [p.Publish(TOPIC, PAYLOAD[: i % 64]) for i in range(PACKETS_PER_CHUNK)]


def acknowledgements(kind: type[p.Puback] | type[p.Pubrec], reason_code: int = 0) -> list[p.Packet]:
    return [kind(i + 1, reason_code) for i in range(PACKETS_PER_CHUNK)]


def decoding() -> list[tuple[str, str, int, bytes]]:
    """(what, our role, version, chunk)"""
    return [
        ("PUBLISH QoS 0, a run of 64-byte payloads", "server", 4, chunk(publishes(0), 4)),
        ("PUBLISH QoS 0, a run, 5.0", "server", 5, chunk(publishes(0), 5)),
        ("PUBLISH QoS 0, a run of mixed sizes", "server", 4, chunk(mixed_sizes(), 4)),
        ("PUBLISH QoS 0, another topic each", "server", 4, chunk(publishes(0, topics=100), 4)),
        ("PUBLISH QoS 0, one by one (client)", "client", 4, chunk(publishes(0), 4)),
        ("PUBLISH QoS 1", "server", 4, chunk(publishes(1), 4)),
        ("PUBLISH QoS 1, 5.0", "server", 5, chunk(publishes(1), 5)),
        ("PUBLISH QoS 1, 5.0, three properties", "server", 5, chunk(publishes(1, PROPERTIES), 5)),
        ("PUBACK", "server", 4, chunk(acknowledgements(p.Puback), 4)),
        ("PUBREC, 5.0, with a reason code", "server", 5, chunk(acknowledgements(p.Pubrec, 0x10), 5)),
        (
            "SUBSCRIBE, one filter",
            "server",
            4,
            chunk([p.Subscribe(1, [p.Subscription(TOPIC, 1)])] * PACKETS_PER_CHUNK, 4),
        ),
        ("PINGREQ", "server", 4, chunk([p.Pingreq()] * PACKETS_PER_CHUNK, 4)),
    ]


def encoding() -> list[tuple[str, Callable[[], object]]]:
    publish = p.Publish(TOPIC, PAYLOAD, 1, packet_id=7)
    with_properties = p.Publish(TOPIC, PAYLOAD, 1, packet_id=7, properties=PROPERTIES)
    puback = p.Puback(7)
    subscribe = p.Subscribe(1, [p.Subscription(TOPIC, 1)])
    connect = p.Connect("kitchen", True, 60, 4)
    return [
        ("publish_parts, QoS 1", lambda: publish_parts(TOPIC, PAYLOAD, b"", 1, False, 4)),
        ("encode_properties, three", lambda: encode_properties(PROPERTIES, "PUBLISH")),
        ("PUBLISH QoS 1", lambda: encode(publish, 4)),
        ("PUBLISH QoS 1, 5.0, three properties", lambda: encode(with_properties, 5)),
        ("PUBACK", lambda: encode(puback, 4)),
        ("SUBSCRIBE, one filter", lambda: encode(subscribe, 4)),
        ("CONNECT", lambda: encode(connect, 4)),
    ]


def seconds_per_call(call: Callable[[], object]) -> float:
    """Best of the rounds."""
    start = time.perf_counter()
    call()
    calls = max(1, int(SECONDS_PER_ROUND / max(time.perf_counter() - start, 1e-7)))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def bytes_kept(call: Callable[[], object]) -> int:
    """Bytes that *call*'s result holds."""
    call()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = call()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del result
    return kept


def decode_all(role: str, version: int, data: bytes) -> list[object]:
    return Decoder(role, version).receive_data(data)  # type: ignore[arg-type, return-value]


def main() -> None:
    gc.disable()  # its pauses belong to the program, not to the codec
    print(f"{'':44} {'us/packet':>9} {'bytes/packet':>13}")
    print("decode")
    for what, role, version, data in decoding():
        # bind by default argument: the loop's variables change
        def call(role: str = role, version: int = version, data: bytes = data) -> list[object]:
            return decode_all(role, version, data)

        us = seconds_per_call(call) / PACKETS_PER_CHUNK * 1e6
        print(f"  {what:42} {us:9.3f} {bytes_kept(call) / PACKETS_PER_CHUNK:13.1f}")
    print("encode")
    for what, make in encoding():
        print(f"  {what:42} {seconds_per_call(make) * 1e6:9.3f} {bytes_kept(make):13}")


if __name__ == "__main__":
    main()

"""The simulator's sensor on batteries: one wake cycle, then deep sleep. It says on stdout what the simulator counts.
What it is to do stands in the environment ($MIDGE_SIM, JSON); it knows nothing of links and power cuts."""

import json
import os
import time

import machine
from midge_client import MemoryOutbox, OutboxFull, wake

SETTINGS = json.loads(os.getenv("MIDGE_SIM"))
STATS = ("session_present", "delivered", "kept", "received", "pipelined", "tx_writes", "tx_bytes", "rx_reads",
         "rx_bytes", "connect_ms", "connack_ms", "exchange_ms", "close_ms", "total_ms")


def say(*what):
    print("@" + json.dumps(what))


def make_outbox(kind, limit):
    if kind == "memory":
        return MemoryOutbox(limit, drop=True)
    import midge_outbox
    if kind == "file":
        return midge_outbox.FileOutbox("outbox.log", limit, drop=True)
    return midge_outbox.RTCOutbox(limit=limit, drop=True)


def measure(outbox, number):
    name = "%d.%d" % (SETTINGS["boot"], number)
    payload = "%s %d " % (name, time.time_ns() // 1_000_000)
    payload += "x" * (SETTINGS["payload_bytes"] - len(payload))
    before = [message.packet_id for message in outbox.messages]
    try:
        outbox.put(SETTINGS["topic"], payload, SETTINGS["qos"])
    except OutboxFull:
        say("full", name)
        return
    now = [message.packet_id for message in outbox.messages]
    for packet_id in before:
        if packet_id not in now:
            say("dropped", packet_id)
    say("put", name, now[-1])


def on_message(topic, payload, retained):
    say("got", payload.decode())


def main():
    outbox = make_outbox(SETTINGS["outbox"], SETTINGS["outbox_bytes"])
    for number in range(SETTINGS["messages"]):
        measure(outbox, number)
    stats = wake(SETTINGS["client_id"], "127.0.0.1", SETTINGS["port"], outbox=outbox, on_message=on_message,
                 subscribe=[(SETTINGS["command_topic"], 1)], timeout_ms=SETTINGS["timeout_ms"])
    result = {name: getattr(stats, name, 0) for name in STATS}
    result["error"] = repr(stats.error) if stats.error else None
    say("cycle", result, [message.packet_id for message in outbox.messages])


main()
machine.deepsleep(SETTINGS["sleep_ms"])

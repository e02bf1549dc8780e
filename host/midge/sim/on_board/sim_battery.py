"""The simulator's wake cycles one after the other, measured: midge's wake(), the real umqtt.simple, or always on.
What it is to do stands in the environment ($MIDGE_SIM, JSON); it knows nothing of links."""

import json
import os
import time

SETTINGS = json.loads(os.getenv("MIDGE_SIM"))
HOST = "localhost" if SETTINGS["cafile"] else "127.0.0.1"
TOPIC = "battery/reading"
PAYLOAD = "x" * SETTINGS["payload_bytes"]


def say(*what):
    print("@" + json.dumps(what))


def context():
    if not SETTINGS["cafile"]:
        return None
    import ssl
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.verify_mode = ssl.CERT_REQUIRED
    with open(SETTINGS["cafile"], "rb") as file:
        tls.load_verify_locations(cadata=file.read())
    return tls


def wake_cycles():
    from midge_client import MemoryOutbox, wake
    outbox = MemoryOutbox()
    filters = [("battery/set", 1)]
    messages = [(TOPIC, PAYLOAD, SETTINGS["qos"])] * SETTINGS["messages"]

    def cycle():
        stats = wake("battery", HOST, SETTINGS["port"], publish=messages, subscribe=filters, outbox=outbox,
                     tls=context(), timeout_ms=60_000)
        return {"delivered": stats.delivered, "error": stats.error and repr(stats.error),
                "connect_ms": stats.connect_ms, "connack_ms": stats.connack_ms, "exchange_ms": stats.exchange_ms,
                "close_ms": stats.close_ms}

    return cycle


# As its README shows it; `commands`: and looks for what waits for it, for as long as mqtt_as' low-power example does.
def umqtt_cycles(commands):
    from umqtt.simple import MQTTClient

    def cycle():
        options = {"ssl": True, "ssl_params": {"server_hostname": HOST}} if SETTINGS["cafile"] else {}
        client = MQTTClient("battery", HOST, SETTINGS["port"], keepalive=60, **options)
        client.set_callback(lambda topic, payload: None)
        client.connect(clean_session=not commands)
        if commands:
            client.subscribe("battery/set", 1)
        for _ in range(SETTINGS["messages"]):
            client.publish(TOPIC, PAYLOAD, qos=SETTINGS["qos"])
        if commands:
            start = time.ticks_ms()
            while time.ticks_diff(time.ticks_ms(), start) < 1000:
                client.check_msg()
                time.sleep_ms(20)
        client.disconnect()
        return {"delivered": SETTINGS["messages"], "error": None}

    return cycle


def always_on():
    import asyncio

    from midge_client import Client

    async def stay():
        client = Client("battery", HOST, SETTINGS["port"], keepalive=SETTINGS["keep_alive_s"], tls=context())
        await client.connect()
        say("ready")
        await asyncio.sleep(SETTINGS["seconds"])

    asyncio.run(stay())


def main():
    program = SETTINGS["program"]
    if program == "always on":
        return always_on()
    cycle = wake_cycles() if program == "wake" else umqtt_cycles(program == "umqtt commands")
    for number in range(SETTINGS["cycles"] + 1):  # the first makes the session, and isn't counted
        start = time.ticks_ms()
        result = cycle()
        result["ms"] = time.ticks_diff(time.ticks_ms(), start)
        say("cycle" if number else "first", result)
        time.sleep_ms(SETTINGS["pause_ms"])


main()

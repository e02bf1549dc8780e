"""Wake cycles one after the other, in one process: PORT CYCLES [OUTBOX PATH LIMIT].

CYCLES is a file, a JSON list of wake()'s options. Runs under MicroPython and CPython; prints each result as JSON.
"""

import json
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

from midge_client import MemoryOutbox, wake

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

STATS = ("session_present", "delivered", "kept", "received", "pipelined", "tx_writes", "tx_bytes", "rx_bytes",
         "connect_ms", "connack_ms", "exchange_ms", "close_ms", "total_ms")


def make_outbox(kind="MemoryOutbox", first="", limit=32_768):
    if kind == "MemoryOutbox":
        return MemoryOutbox(int(first or limit))
    import midge_outbox
    return getattr(midge_outbox, kind)(first, int(limit))


def main():
    outbox = make_outbox(*sys.argv[3:])
    with open(sys.argv[2]) as file:
        cycles = json.load(file)
    for options in cycles:
        got = []

        def on_message(topic, payload, retained):
            if payload == b"raise":
                raise RuntimeError("the program's own")
            got.append([topic, payload.decode(), retained])

        for name in ("publish", "subscribe"):
            if name in options:
                options[name] = [tuple(item) for item in options[name]]
        if options.pop("v5", False):
            import midge_mqtt5
            options["client"] = midge_mqtt5.Client
        settings = {"timeout_ms": 8000}
        settings.update(options)
        try:
            stats = wake("sleeper", "127.0.0.1", int(sys.argv[1]), on_message=on_message, outbox=outbox, **settings)
        except RuntimeError as error:
            print(json.dumps({"raised": str(error)}))
            continue
        result = {name: getattr(stats, name) for name in STATS}
        result["error"] = [type(stats.error).__name__, getattr(stats.error, "code", 0)] if stats.error else None
        result["refused"] = len(stats.refused)
        result["got"] = got
        print(json.dumps(result))


main()

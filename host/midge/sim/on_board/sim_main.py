"""Runs a program of yours as the simulator's board: PROGRAM [ARGUMENT ...]. Says how each of its wake() ended.
It knows nothing of what the program does."""

import json
import sys

STATS = ("session_present", "delivered", "kept", "received", "pipelined", "tx_writes", "tx_bytes", "rx_reads",
         "rx_bytes", "connect_ms", "connack_ms", "exchange_ms", "close_ms", "total_ms")


def watch():
    import midge_wake
    wake = midge_wake.wake

    def watched(*args, **options):
        stats = wake(*args, **options)
        result = {name: getattr(stats, name, 0) for name in STATS}
        result["error"] = repr(stats.error) if stats.error else None
        print("@" + json.dumps(["cycle", result, []]))
        return stats

    midge_wake.wake = watched


del sys.argv[0]
if sys.argv[0].startswith("+"):  # it calls wake(): loading it for others would take their memory
    sys.argv[0] = sys.argv[0][1:]
    watch()
__import__(sys.argv[0])

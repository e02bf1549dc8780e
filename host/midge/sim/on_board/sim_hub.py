"""The simulator's hub: the board's broker, with its journal in the board's flash if it is to have one.
What it is to do stands in the environment ($MIDGE_SIM, JSON)."""

import asyncio
import json
import os

from midge_broker import Broker

SETTINGS = json.loads(os.getenv("MIDGE_SIM"))

broker = Broker(0, "127.0.0.1", max_clients=SETTINGS["max_clients"], store=SETTINGS["store"])
broker.listen()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
print('@["ready"]')
try:
    asyncio.run(broker.run())
except KeyboardInterrupt:
    pass

# The board's broker with constructor arguments: broker_program.py [name=value ...]. Runs from the project's root.
import asyncio
import gc
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

options = {"port": 0, "bind": "127.0.0.1"}
users = None
for argument in sys.argv[1:]:
    name, value = argument.split("=")
    if name == "user":  # only this one, with the password "secret"
        users = value
    elif name == "store":
        options[name] = value
    elif name == "allow":
        options[name] = lambda client_id, topic, write: (
            topic.startswith(("own/" + client_id, "secret/" + client_id)) if write else not topic.startswith("secret")
        )
    else:
        options[name] = int(value)


def check(client_id, user, password):
    return user == users and password == b"secret"


def echo(topic, payload, retained):
    broker.publish("echo/" + topic, payload, qos=1)


if users:
    options["auth"] = check
broker = midge_broker.Broker(**options)
broker.subscribe("ask/#", echo)
gc.collect()
broker.listen()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
asyncio.run(broker.run())

"""A worker of docs/work-queues.md with paho-mqtt as it is: PORT NAME SECONDS [LAST]. LAST: the number of its job that
never ends, so that it can be killed in the middle of it.
"""

import sys
import time

import paho.mqtt.client as mqtt

port, name, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
last = int(sys.argv[4]) if len(sys.argv) > 4 else 0
count = 0


def encode(client, _, message):
    global count
    count += 1
    if count == last:
        print("begun", message.payload.decode(), flush=True)
        time.sleep(3600)
    time.sleep(seconds)
    print("done", message.payload.decode(), flush=True)  # when this returns, paho acknowledges


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name)
client.on_message = encode
client.on_subscribe = lambda *_: print("ready", flush=True)
client.connect("127.0.0.1", port)
client.subscribe("$queue/encode", qos=1)
client.loop_forever()

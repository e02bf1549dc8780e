# The broker's journal cut and changed at every byte: whatever is left whole comes back. Runs from the project's root.
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker
import midge_broker_store

midge_broker_store._sync = lambda file: None  # no power cut here, and there are some hundred journals to write
STEP = 1 if sys.implementation.name == "micropython" else 31  # the same code, on a slower file system
try:
    os.stat("/dev/shm")
    FOLDER = "/dev/shm"  # in memory: a rename on a disk waits for it, and there are a thousand
except OSError:
    FOLDER = "/tmp"
PATH = "%s/midge-journal-%d" % (FOLDER, int.from_bytes(os.urandom(4), "big"))


class Subscriber:
    v5 = False
    options = 0


def make(**options):
    return midge_broker.Broker(0, "127.0.0.1", log=lambda line: None, store=PATH, budget_bytes=64000, **options)


def write(data):
    with open(PATH, "wb") as file:
        file.write(data)


def payloads(broker):
    session = broker._sessions.get("s")
    return [bytes(each[5:]) for each in session.queue[1::2]] if session else None


def retained(broker):
    message = broker._retained.get("r")
    return bytes(message[5:]) if message else None


# Eight messages for an absent session, one of them retained, and one that was acknowledged.
broker = make()
session = broker._sessions["s"] = midge_broker._Session("s", False)
broker._store.session(session, -1)
broker._subscribe(Subscriber, session, "+", 1)
for number in range(8):
    broker.publish("r" if number == 3 else "t", b"%d" % number, 1, number == 3)
broker._remove(session, 0)
broker._store.close()
with open(PATH, "rb") as file:
    journal = file.read()
EXPECTED = [b"%d" % number for number in range(1, 8)]
whole = make()
assert payloads(whole) == EXPECTED and retained(whole) == b"3", payloads(whole)
whole._store.close()

# Where the records end, and what each is.
records = []
at = 0
while at < len(journal):
    length = 8 + int.from_bytes(journal[at + 1 : at + 4], "big")
    records.append((at, at + length, journal[at + 8]))
    at += length


def message_of(start, end):
    return journal[end - 1 : end]


for cut in range(0, len(journal), STEP):
    write(journal[:cut])
    broker = make()
    there = [record for record in records if record[1] <= cut]
    kinds = [record[2] for record in there]
    if 1 not in kinds:  # no session
        assert payloads(broker) is None, cut
    else:
        expected = [message_of(start, end) for start, end, kind in there if kind == 6]
        if 7 in kinds:
            del expected[0]
        assert payloads(broker) == expected, (cut, payloads(broker))
    broker._store.close()
    # It goes on from there.
    again = make()
    assert payloads(again) == payloads(broker), cut
    again._store.close()

for start, end, kind in records:
    for at in range(start, end, STEP):
        damaged = bytearray(journal)
        damaged[at] ^= 0x41
        write(damaged)
        broker = make()
        assert broker._store.damaged == 1, at
        if kind == 6:  # all but this message
            lost = message_of(start, end)
            assert payloads(broker) == [each for each in EXPECTED if each != lost], (at, payloads(broker))
            assert retained(broker) == (None if lost == b"3" else b"3"), at
        elif kind == 7:  # an acknowledgement: the message comes again
            assert payloads(broker)[0] == b"0" and payloads(broker)[1:] == EXPECTED, at
        elif kind == 1:
            assert payloads(broker) is None and retained(broker) == b"3", at
        else:
            assert payloads(broker) == EXPECTED, at
        broker._store.close()

# A message of QoS 2 and the packet identifier that it came with: both are there, or neither is.
os.remove(PATH)
broker = make()
for name in ("s", "p"):
    session = broker._sessions[name] = midge_broker._Session(name, False)
    broker._store.session(session, -1)
broker._subscribe(Subscriber, broker._sessions["s"], "t", 2)
broker._store.note(8, session.number, 5)  # _TAKEN, as for PUBLISH at QoS 2 from "p"
broker.publish("t", b"q", 2)
broker._store.close()
with open(PATH, "rb") as file:
    exactly_once = file.read()
both = 0
for cut in range(0, len(exactly_once) + 1, STEP):
    write(exactly_once[:cut])
    broker = make()
    source = broker._sessions.get("p")
    is_taken = bool(source and source.received == [5])
    assert is_taken == (payloads(broker) == [b"q"]), cut
    both += is_taken
    broker._store.close()
assert both or STEP > 1
os.remove(PATH)
print("%d bytes, each cut and changed" % len(journal))
print("done")

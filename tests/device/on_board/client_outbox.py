"""Outboxes by themselves: WHAT PATH [...]. Runs under MicroPython and CPython; prints JSON for what happened.

damage: a log is cut and corrupted at every byte; what it gives then is compared with the records that are whole.
run: puts messages aside, wakes and publishes until it is killed.
"""

import asyncio
import json
import os
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

import midge_outbox
from midge_client import Client, MemoryOutbox, OutboxFull, wake

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

PATH = sys.argv[2]


def say(*what):
    print(json.dumps(what))


def remove(path):
    try:
        os.remove(path)
    except OSError:
        pass


# RTC memory as the ESP32's machine.RTC() has it, in a file so that a killed process leaves it behind.
class FileRTC:
    def memory(self, data=None):
        if data is None:
            try:
                with open(PATH, "rb") as file:
                    return file.read()
            except OSError:
                return b""
        with open(PATH + ".rtc", "wb") as file:
            file.write(data)
        os.rename(PATH + ".rtc", PATH)


def make(kind, **options):
    if kind == "RTCOutbox":
        return midge_outbox.RTCOutbox(FileRTC(), **options)
    return midge_outbox.FileOutbox(PATH, **options)


def read():
    with open(PATH, "rb") as file:
        return file.read()


def write(data):
    with open(PATH, "wb") as file:
        file.write(data)


def finish(outbox):
    outbox.sync()
    if hasattr(outbox, "close"):
        outbox.close()


# What an outbox holds, in a form that can be compared.
def content(outbox):
    messages = []
    for message in outbox.messages:
        if message.state != 0x70:
            outbox.load(message)
        messages.append((message.packet_id, message.state, message.topic, message.payload))
    return messages, list(outbox.inbound), bytes(outbox.filters)


# The steps that made the log, each a function of the outbox, and what it does to a model: a dictionary of messages in
# order, a list of inbound identifiers and the filters.
def steps():
    def putting(packet_id, qos):
        topic, payload = b"topic/%d" % packet_id, bytes(range(packet_id * 3))

        def model(messages, _inbound, _filters):
            messages.append([packet_id, (0x30, 0x40, 0x50)[qos], topic, payload])

        return lambda outbox: outbox.put(topic, payload, qos), model

    def releasing(packet_id):
        def model(messages, _inbound, _filters):
            for message in messages:
                if message[0] == packet_id:
                    message[1:] = [0x70, b"", b""]
                    return
            messages.append([packet_id, 0x70, b"", b""])

        return lambda outbox: outbox.release(outbox.find(packet_id)), model

    def removing(packet_id):
        def model(messages, _inbound, _filters):
            for message in list(messages):
                if message[0] == packet_id:
                    messages.remove(message)

        return lambda outbox: outbox.remove(outbox.find(packet_id)), model

    def remembering(packet_id):
        return lambda outbox: outbox.remember(packet_id), lambda _messages, inbound, _filters: inbound.append(packet_id)

    def forgetting(packet_id):
        def model(_messages, inbound, _filters):
            if packet_id in inbound:
                inbound.remove(packet_id)

        return lambda outbox: outbox.forget(packet_id), model

    def noting(filters):
        def model(_messages, _inbound, held):
            held[0] = filters

        return lambda outbox: outbox.note(filters), model

    return [putting(1, 1), putting(2, 2), noting(b"\0\1a\1"), putting(3, 0), releasing(2), putting(4, 2),
            remembering(9), removing(1), remembering(8), forgetting(9), putting(5, 1), removing(2), releasing(4),
            noting(b""), noting(b"\0\1b\2"), putting(6, 1), removing(3)]


def expected(models):
    messages, inbound, filters = [], [], [b""]
    for model in models:
        model(messages, inbound, filters)
    return [tuple(message) for message in messages], inbound, filters[0]


def damage(kind):
    remove(PATH)
    outbox = make(kind)
    ends = []
    for step, _model in steps():
        step(outbox)
        ends.append(outbox.logged)
    finish(outbox)
    whole = read()
    assert len(whole) == ends[-1]
    models = [model for _step, model in steps()]
    checked = 0
    for at in range(len(whole)):
        hit = len([end for end in ends if end <= at])  # the record that the byte is in
        flipped = whole[:at] + bytes((whole[at] ^ 0x55,)) + whole[at + 1:]
        for data, wanted in ((whole[:at], models[:hit]), (flipped, models[:hit] + models[hit + 1:])):
            write(data)
            outbox = make(kind)
            if content(outbox) != expected(wanted):
                say("differs", at, len(data), str(content(outbox)), str(expected(wanted)))
                return
            outbox.put("after", b"the damage", 1)
            before = content(outbox)
            finish(outbox)
            outbox = make(kind)
            if content(outbox) != before:
                say("lost after the damage", at, len(data), str(before), str(content(outbox)))
                return
            finish(outbox)
            checked += 1
    remove(PATH)
    say("checked", checked)


# Compaction killed at any moment leaves one of the two logs whole: here its steps one by one.
def compaction(kind):
    remove(PATH)
    remove(PATH + ".new")
    outbox = make(kind, limit=500)
    sizes = []
    for i in range(200):
        outbox.put("topic", "%d" % i, 1)
        if i >= 5:
            outbox.remove(outbox.messages[0])
        sizes.append(outbox.logged)
    before = content(outbox)
    finish(outbox)
    say("bounded", max(sizes) <= outbox.log_max)
    data = read()
    say("same", content(make(kind, limit=500)) == before)
    if kind == "FileOutbox":
        write(data)
        for cut in (0, 7, len(data) // 2):  # killed while the second file is written
            with open(PATH + ".new", "wb") as file:
                file.write(data[:cut])
            say("same", content(make(kind, limit=500)) == before)
        remove(PATH)  # killed between FAT's two steps
        with open(PATH + ".new", "wb") as file:
            file.write(data)
        say("same", content(make(kind, limit=500)) == before)


def full(kind):
    room = {"limit": 3 * (16 + 5 + 4)}

    def new(**options):
        remove(PATH)
        return MemoryOutbox(**options) if kind == "MemoryOutbox" else make(kind, **options)

    outbox = new(**room)
    for i in range(3):
        outbox.put("topic", "%04d" % i, i % 3)
    try:
        outbox.put("topic", "more", 1)
    except OutboxFull:
        say("full", len(outbox.messages))
    outbox = new(drop=True, **room)
    for qos in (1, 0, 2, 1, 1, 2, 2):
        try:
            outbox.put("topic", "%04d" % qos, qos)
        except OutboxFull:
            say("full")
        say([message.header >> 1 & 3 for message in outbox.messages], outbox.dropped)


# Until it is killed: PORT RUN KIND. Says each message once the outbox or publish() has answered for it.
def run(kind, port, number):
    outbox = make(kind, limit=1200) if kind == "RTCOutbox" else make(kind, limit=3000)
    count = 0

    def payload():
        nonlocal count
        count += 1
        return "%05d-%05d" % (number, count)

    async def publish():
        client = Client("killed", "127.0.0.1", port, clean=False, outbox=outbox, backoff_ms=(10, 50))
        await client.connect()
        for _ in range(6):
            text = payload()
            qos = count % 2 + 1
            await client.publish("out/%d" % qos, text, qos)
            say(text, qos)
        await client.disconnect()

    say("start", outbox.damaged)
    while True:
        for _ in range(number % 4 + 1):
            text = payload()
            qos = count % 2 + 1
            outbox.put("out/%d" % qos, text, qos)
            say(text, qos)
        stats = wake("killed", "127.0.0.1", port, outbox=outbox)
        say("woke", stats.kept)
        asyncio.run(publish())
        if number == 0:
            return say("end", len(outbox.messages))


# A board's flash, 128 blocks of 512 bytes in memory.
class Flash:
    def __init__(self):
        self.data = bytearray(128 * 512)

    def readblocks(self, block, buffer, offset=0):
        at = block * 512 + offset
        buffer[:] = self.data[at:at + len(buffer)]

    on_write = None

    def writeblocks(self, block, buffer, offset=0):
        if self.on_write:
            self.on_write()
        at = block * 512 + offset
        self.data[at:at + len(buffer)] = buffer

    def ioctl(self, operation, _argument):
        return {4: 128, 5: 512, 6: 0}.get(operation)


# The log on the file systems that boards have; power is cut by mounting a copy of what the flash holds. KIND: the file
# system's class.
def flash(kind):
    import vfs

    device = Flash()
    system = getattr(vfs, kind)
    system.mkfs(device)
    vfs.mount(system(device), "/flash")
    outbox = midge_outbox.FileOutbox("/flash/outbox.log", 500)
    cuts = []
    for i in range(120):
        outbox.put("topic", "%d" % i, 1)
        if i >= 5:
            outbox.remove(outbox.messages[0])
            outbox.sync()
        if i % 7 == 0:
            cuts.append((bytes(device.data), [(m.packet_id, m.state) for m in outbox.messages]))
    vfs.umount("/flash")
    for data, wanted in cuts:
        copy = Flash()
        copy.data[:] = data
        vfs.mount(system(copy), "/flash")
        outbox = midge_outbox.FileOutbox("/flash/outbox.log", 500)
        if [(m.packet_id, m.state) for m in outbox.messages] != wanted:
            return say("differs", str(wanted), str(outbox.messages))
        if [content(outbox)[0][-1][3]] == [None]:
            return say("no payload")
        vfs.umount("/flash")
    say("same", len(cuts))


# LittleFS, and power is cut before each write of a block, in compactions too: what put() had returned for is there.
def flash_writes(kind):
    import vfs

    device = Flash()
    system = getattr(vfs, kind)
    system.mkfs(device)
    vfs.mount(system(device), "/flash")
    outbox = midge_outbox.FileOutbox("/flash/outbox.log", 400)
    taken, cuts = [], []
    device.on_write = lambda: cuts.append((bytes(device.data), list(taken)))
    for i in range(40):
        outbox.put("topic", "%d" % i, 1)
        taken.append(outbox.messages[-1].packet_id)
        if i >= 4:
            taken.pop(0)
            outbox.remove(outbox.messages[0])
    device.on_write = None
    vfs.umount("/flash")
    for data, wanted in cuts:
        copy = Flash()
        copy.data[:] = data
        vfs.mount(system(copy), "/flash")
        outbox = midge_outbox.FileOutbox("/flash/outbox.log", 400)
        found = [message[0] for message in content(outbox)[0]]
        if [packet_id for packet_id in wanted if packet_id not in found] or found != sorted(found):
            return say("lost", str(wanted), str(found))
        vfs.umount("/flash")
    say("cuts", len(cuts))


what = sys.argv[1]
if what == "run":
    run(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
else:
    globals()[what](sys.argv[3])

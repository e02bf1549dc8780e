# The broker's journal on littlefs while the power goes at each write to the flash: what was acknowledged is there
# afterwards. Runs from the project's root.
import os
import sys

import vfs

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")
sys.path.insert(1, "tests/device/on_board")

import midge_broker
import midge_broker_store
from broker_ram_flash import RAMFlash

BLOCKS = 16
MESSAGES = 12


class Subscriber:
    v5 = False
    options = 0


def make():
    # A journal that is compacted every few messages.
    broker = midge_broker.Broker(0, store="/flash/journal", budget_bytes=64000, log=lambda line: None)
    broker._store._limit = 300
    return broker


def payloads(broker):
    session = broker._sessions.get("s")
    return [int(bytes(each[5:])) for each in session.queue[1::2]] if session else []


def work(acknowledged):
    broker = make()
    session = broker._sessions["s"] = midge_broker._Session("s", False)
    broker._store.session(session, -1)
    broker._subscribe(Subscriber, session, "t", 1)
    broker._flush()
    for number in range(MESSAGES):
        broker.publish("t", b"%d" % number, 1)
        if broker._store._has_failed:
            break
        acknowledged.append(number)
    midge_broker_store._close(broker._store._file)


empty = RAMFlash(BLOCKS)
vfs.VfsLfs2.mkfs(empty)
image = bytes(empty.data)

cuts = 0
cut = 1
while True:
    flash = RAMFlash(BLOCKS, data=bytearray(image))
    flash.writes_left = cut
    acknowledged = []
    try:
        vfs.mount(vfs.VfsLfs2(flash), "/flash")
        work(acknowledged)
    except OSError:
        pass
    try:
        vfs.umount("/flash")
    except OSError:
        pass
    is_over = flash.writes_left > 0
    # The power is back.
    vfs.mount(vfs.VfsLfs2(RAMFlash(BLOCKS, data=flash.data)), "/flash")
    broker = make()
    found = payloads(broker)
    assert found[: len(acknowledged)] == acknowledged, (cut, acknowledged, found)
    assert len(found) <= len(acknowledged) + 1, (cut, acknowledged, found)
    broker._store.close()
    vfs.umount("/flash")
    if is_over:
        break
    cuts += 1
    cut += 1
assert acknowledged == list(range(MESSAGES))
print("the power went at each of %d writes" % cuts)
print("done")

# An update on littlefs while the power goes at each write to the flash: whatever is chosen at the next start is whole,
# the old version or the new one, and the update can be finished afterwards. Runs from the project's root.
import asyncio
import binascii
import gc
import hashlib
import json
import os
import struct
import sys

import vfs

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")
sys.path.insert(1, "tests/device/on_board")

import midge_boot as boot
import midge_update
from broker_ram_flash import RAMFlash

BLOCKS = 64
OLD = {"app.mpy": b"old" * 300, "same.mpy": b"same" * 200, "gone.mpy": b"gone"}
NEW = {"app.mpy": bytes(range(256)) * 5, "words.txt": b"spoken"}
AFTER = {"app.mpy": NEW["app.mpy"], "words.txt": NEW["words.txt"], "same.mpy": OLD["same.mpy"]}
ID = "00112233445566ff"


class Reset(Exception):
    pass


def reset():
    raise Reset


boot.reset = reset


def sha256(data):
    return binascii.hexlify(hashlib.sha256(data).digest()).decode()


def begin():
    files = [[name, len(data), sha256(data)] for name, data in sorted(NEW.items())]
    return b"\n" + json.dumps({"id": ID, "files": files, "remove": ["gone.mpy"]}).encode()


# The other side, as host/midge/boards/update.py does it.
def send_all():
    said = []
    updater = midge_update.Updater("b", lambda topic, payload, retain: said.append((topic, payload)))
    updater.connected()
    updater.receive("b/set/update/begin", begin())
    for index, (_name, data) in enumerate(sorted(NEW.items())):
        has = None
        for topic, payload in said:
            if topic == "b/state/update":
                state = json.loads(payload)
                if state["state"] == "receiving":
                    has = dict([tuple(each) for each in state["need"]]).get(index)
                elif state["state"] == "refused":
                    raise OSError(state["why"])
        is_first = True  # all of it may be there, and only its name be wrong: an empty chunk finishes it
        while has is not None and (is_first or has < len(data)):
            is_first = False
            chunk = data[has : has + 400]
            head = struct.pack(">8sHII", binascii.unhexlify(ID), index, has, binascii.crc32(chunk))
            count = len(said)
            updater.receive("b/set/update/chunk", head + chunk)
            if len(said) == count or said[-1][0] != "b/state/update/at":
                raise OSError(said[-1][1])
            has = int(said[-1][1].split()[2])

    async def commit():
        updater.receive("b/set/update/commit", ID.encode())
        if not updater._committing:
            raise OSError(said[-1][1])
        await updater._committing

    asyncio.run(commit())
    if b"refused" in said[-1][1]:
        raise OSError(said[-1][1])


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def content(slot):
    directory = "/flash/midge_" + slot
    found = {}
    for name in os.listdir(directory):
        if name != "manifest.json" and name != "update.json":
            with open(directory + "/" + name, "rb") as file:
                found[name] = file.read()
    return found


real_sleep = asyncio.sleep
asyncio.sleep = lambda seconds: real_sleep(0)

# The old version runs from "a"; "b" holds the one before it, and a file of the same name that is none of ours.
empty = RAMFlash(BLOCKS, 4096)
vfs.VfsLfs2.mkfs(empty)
vfs.mount(vfs.VfsLfs2(empty), "/flash")
boot.ROOT = "/flash"
os.mkdir("/flash/midge_a")
for name, data in OLD.items():
    write("/flash/midge_a/" + name, data)
os.mkdir("/flash/midge_b")
write("/flash/midge_b/words.txt", b"other")
boot.save({"slot": "a"})
vfs.umount("/flash")
image = bytes(empty.data)

cuts = old = new = 0
cut = 1
while True:
    flash = RAMFlash(BLOCKS, 4096, data=bytearray(image))
    flash.writes_left = cut
    vfs.mount(vfs.VfsLfs2(flash), "/flash")
    is_whole = False
    try:
        send_all()
    except Reset:
        is_whole = True
    except (OSError, AttributeError):
        pass
    vfs.umount("/flash")

    # The power is back. What the collector finds open and closes now goes to the flash of before.
    flash.writes_left = -1
    flash = RAMFlash(BLOCKS, 4096, data=bytearray(flash.data))
    gc.collect()
    vfs.mount(vfs.VfsLfs2(flash), "/flash")
    slot = boot.choose()
    if slot == "a":
        assert content("a") == OLD, (cut, content("a"))
        old += 1
        # Not switched: the same update goes on where it was.
        try:
            send_all()
        except Reset:
            pass
        slot = boot.choose()
    else:
        new += 1
    assert slot == "b" and content("b") == AFTER, (cut, slot, content("b"))
    assert boot.confirm()[:2] == (ID, "running")
    assert boot.state() == {"slot": "b"}
    vfs.umount("/flash")
    cuts += 1
    if is_whole:
        break
    cut += 1
print(json.dumps(["cuts", cuts, old, new]))

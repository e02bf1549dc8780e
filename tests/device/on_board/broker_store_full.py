# The broker with a journal on a flash of 48 kB. Runs from the project's root.
import asyncio
import os
import sys

import vfs

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")
sys.path.insert(1, "tests/device/on_board")

import midge_broker
from broker_ram_flash import RAMFlash

flash = RAMFlash(12)
vfs.VfsLfs2.mkfs(flash)
vfs.mount(vfs.VfsLfs2(flash), "/flash")
broker = midge_broker.Broker(0, "127.0.0.1", store="/flash/journal", max_queued_bytes=200_000)
broker.listen()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
asyncio.run(broker.run())

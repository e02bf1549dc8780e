# A block device in memory, for littlefs, which counts what is written and can lose its power.


class RAMFlash:
    def __init__(self, blocks, block_bytes=4096, data=None):
        self.block_bytes = block_bytes
        self.data = data or bytearray(b"\xff" * (blocks * block_bytes))
        self.programmed = 0  # bytes
        self.erased = 0  # blocks
        self.writes_left = -1  # -1: no end; afterwards nothing gets to the flash any more

    def _takes(self):
        if self.writes_left == 0:
            return False
        self.writes_left -= 1
        return True

    def readblocks(self, block, buffer, offset=0):
        at = block * self.block_bytes + offset
        buffer[:] = self.data[at : at + len(buffer)]

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            offset = 0
        at = block * self.block_bytes + offset
        size = len(buffer)
        if not self._takes():
            raise OSError(5)
        if self.writes_left == 0:
            size //= 2  # the power goes in the middle of it
        self.data[at : at + size] = memoryview(buffer)[:size]
        self.programmed += size

    def ioctl(self, op, argument):
        if op == 4:
            return len(self.data) // self.block_bytes
        if op == 5:
            return self.block_bytes
        if op == 6:
            if not self._takes():
                return -5
            at = argument * self.block_bytes
            self.data[at : at + self.block_bytes] = b"\xff" * self.block_bytes
            self.erased += 1
            return 0
        return 0

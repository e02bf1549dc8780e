"""A new version of the board's program, received in chunks over MQTT beside the version that runs.
It must not know what carries the messages: a client, or a broker on this board. midge_boot.py switches and falls back.
"""
# Topics, and what their payloads are:
#   NAME/set/update/begin    HMAC-SHA256 in hex, or none; "\n"; JSON {"id", "files": [[name, size, sha256]], "remove"}
#   NAME/set/update/chunk    8 bytes of the identifier, index in "files", offset, CRC-32, data: _CHUNK
#   NAME/set/update/commit   the identifier
#   NAME/set/update/ask      nothing: where do you stand?
#   NAME/state/update        JSON {"id", "state", "need": [[index, offset]], "why"}; retained when it is the last word
#   NAME/state/update/at     "identifier index offset": what is there of that file; the next chunk begins there
# A file that isn't named in "files" or "remove" stays as it is in the version that runs.
#
# All that was received is on flash, so an update goes on after a reset where it was: update.json says what is to come,
# NAME.part grows chunk by chunk, and is NAME once its hash is right.

import asyncio
import binascii
import hashlib
import json
import os
import struct

import midge_boot as boot

_CHUNK = ">8sHII"
_HEADER = 18
_BLOCK = 512  # bytes read at once for a hash or a copy
_MANIFEST, _UPDATE = "/manifest.json", "/update.json"
_SPARE_BYTES = 16_384  # of flash, for littlefs itself and for the state


def _hash(path, copy_to=None):
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with open(path, "rb") as file:
        while True:
            count = file.readinto(buffer)
            if not count:
                break
            digest.update(buffer[:count])
            if copy_to:
                copy_to.write(buffer[:count])
    return binascii.hexlify(digest.digest()).decode()


def _size(path):
    try:
        return os.stat(path)[6]
    except OSError:
        return -1


def _hmac(key, text):
    block = bytearray(64)
    block[: len(key)] = key if len(key) <= 64 else hashlib.sha256(key).digest()
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + text).digest()
    return binascii.hexlify(hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest())


# In time that doesn't tell how much of it was right.
def _is_same(a, b):
    difference = len(a) ^ len(b)
    for x, y in zip(a, b):
        difference |= x ^ y
    return not difference


def _check_name(name):
    if name[:1] in ("", ".") or name.endswith((".part", ".new")) or name in ("manifest.json", "update.json"):
        raise ValueError("file name " + repr(name))
    for character in name:
        if not (character.isalpha() or character.isdigit() or character in "_-."):
            raise ValueError("file name " + repr(name))


# send(topic, payload, retain): publishes at QoS 1, at once, without waiting.
# key: bytes; with it only who knows it may send a version. Without it, whoever may publish to NAME/set/update/#.
class Updater:
    def __init__(self, name, send, key=None):
        self.name = name
        self.prefix = name + "/set/update/"
        self._send = send
        self._key = key
        self._dir = boot.path(boot.directory(boot.idle(boot.state())))
        self._running = boot.path(boot.directory(boot.state()["slot"]))
        self._update = self._need = None
        self._committing = None
        update = self._read_update()
        if update:
            self._resume(update)

    # Call it once the board has connected for the first time: what runs now is what it shall go on with.
    def connected(self):
        told = boot.confirm()
        if told:
            self._tell(told[1], told[2], told[0], True)
            # The directories have changed their places.
            self.__init__(self.name, self._send, self._key)

    # For each message; is it one of ours?
    def receive(self, topic, payload):
        if not topic.startswith(self.prefix):
            return False
        what = topic[len(self.prefix) :]
        try:
            if what == "begin":
                self._begin(bytes(payload))
            elif what == "chunk":
                self._take(payload)
            elif what == "commit":
                self._commit(bytes(payload).decode())
            elif what == "ask":
                self._tell()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell("refused", "%s: %s" % (type(error).__name__, error))
        return True

    # ------------------------------------------------------------------------------------------------------

    def _tell(self, state=None, why="", id=None, retain=False):
        update = self._update
        if state is None:
            state = "idle" if not update else "committing" if self._committing else "receiving"
        said = {"id": id or (update and update["id"]), "state": state, "why": why}
        if state == "receiving":
            said["need"] = [[index, self._offset(index)] for index in self._need]
        self._send(self.name + "/state/update", json.dumps(said).encode(), retain)

    def _begin(self, payload):
        if boot.is_on_trial():
            raise ValueError("a version is on trial")
        if self._committing:
            raise ValueError("another version is being put together")
        mac, text = payload.split(b"\n", 1)
        if self._key and not _is_same(_hmac(self._key, text), mac):
            raise ValueError("not signed with this board's key")
        update = json.loads(text)
        for name in [each[0] for each in update["files"]] + update["remove"]:
            _check_name(name)
        if len(update["id"]) != 16:
            raise ValueError("identifier")
        if not self._update or self._update["id"] != update["id"]:
            self._check_room(update)
            self._open(text.decode())
            self._resume(update)
        self._tell()

    def _check_room(self, update):
        needed = _SPARE_BYTES + sum(each[1] for each in update["files"])
        needed += sum(max(0, _size(self._running + "/" + name)) for name in self._kept(update))
        free = os.statvfs(boot.ROOT or "/")
        free = free[0] * free[3] + sum(max(0, _size(self._dir + "/" + name)) for name in self._listed(self._dir))
        if needed > free:
            raise ValueError("%d bytes of flash are needed, %d are free" % (needed, free))

    # From here on the other directory is no version any more, but an update that is to come.
    def _open(self, text):
        try:
            os.mkdir(self._dir)
        except OSError:
            pass
        directory = self._dir[len(boot.ROOT) + 1 :]
        boot.remove(directory + _MANIFEST)
        for name in self._listed(self._dir):
            if name.endswith((".part", ".new")):
                os.remove(self._dir + "/" + name)
        boot.write_file(directory + _UPDATE, text)

    def _read_update(self):
        try:
            with open(self._dir + _UPDATE) as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    def _resume(self, update):
        self._update = update
        self._need = []
        for index, (name, size, sha256) in enumerate(update["files"]):
            path = self._dir + "/" + name
            if _size(path) != size or _hash(path) != sha256:
                self._need.append(index)

    def _offset(self, index):
        return max(0, _size(self._part(index)))

    def _part(self, index):
        return self._dir + "/" + self._update["files"][index][0] + ".part"

    def _take(self, payload):
        id, index, offset, crc = struct.unpack(_CHUNK, payload)
        update = self._update
        if not update or binascii.hexlify(id).decode() != update["id"]:
            return self._tell()
        data = memoryview(payload)[_HEADER:]
        if index in self._need:
            size = update["files"][index][1]
            has = self._offset(index)
            # A chunk that came twice, or out of order after a new connection: the answer says what is wanted.
            if offset == has and has + len(data) <= size and binascii.crc32(data) == crc:
                with open(self._part(index), "ab") as file:
                    file.write(data)
                has += len(data)
                if has == size:
                    self._finish(index)
        has = self._offset(index) if index in self._need else update["files"][index][1]
        self._send(self.name + "/state/update/at", b"%s %d %d" % (update["id"].encode(), index, has), False)

    def _finish(self, index):
        name, _size, sha256 = self._update["files"][index]
        part = self._part(index)
        if _hash(part) == sha256:
            os.rename(part, self._dir + "/" + name)
            self._need.remove(index)
        else:
            os.remove(part)  # it is asked for again, from its start

    # ------------------------------------------------------------------------------------------------------

    def _commit(self, id):
        update = self._update
        if not update or update["id"] != id or self._need or self._committing:
            return self._tell()
        self._committing = asyncio.create_task(self._switch(update))
        self._tell()

    # A task of its own: copying takes a second or two, and the connection must be kept meanwhile.
    async def _switch(self, update):
        try:
            manifest = {}
            for name, size, sha256 in update["files"]:
                if _hash(self._dir + "/" + name) != sha256:
                    raise OSError(5)
                manifest[name] = [size, sha256]
                await asyncio.sleep(0)
            for name in self._kept(update):
                manifest[name] = self._copy(name)
                await asyncio.sleep(0)
            for name in self._listed(self._dir):
                if name not in manifest and name != "update.json":
                    os.remove(self._dir + "/" + name)
            directory = self._dir[len(boot.ROOT) + 1 :]
            boot.write_file(directory + _MANIFEST, json.dumps({"id": update["id"], "files": manifest}))
            boot.begin_trial(update["id"])
            boot.remove(directory + _UPDATE)
        except OSError as error:
            self._committing = None
            self._resume(update)
            return self._tell("refused", "flash: %s" % error)
        self._tell("switching")
        await asyncio.sleep(1)  # for the message
        boot.reset()

    def _copy(self, name):
        target = self._dir + "/" + name
        source = self._running + "/" + name
        size = _size(source)
        sha256 = _hash(source)
        if _size(target) != size or _hash(target) != sha256:
            with open(target, "wb") as file:
                _hash(source, file)
            if _hash(target) != sha256:
                raise OSError(5)
        return [size, sha256]

    # What the new version takes over from the one that runs.
    def _kept(self, update):
        named = [each[0] for each in update["files"]] + update["remove"]
        return [name for name in self._listed(self._running) if name not in named and name != "manifest.json"]

    def _listed(self, directory):
        try:
            return os.listdir(directory)
        except OSError:
            return []

"""Sends a new version of its program to a board over MQTT: chunk by chunk, each answered, and waits until it runs.
Knows nothing of how the board keeps it. The protocol is device/midge_update.py's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from midge.boards.bundle import Bundle, identify, sha256
from midge.boards.simulate import BoardError

_CHUNK = struct.Struct(">8sHII")
# A board reads packets of up to 2,048 bytes (the client's `max_packet`); a hub with the least memory 1,875.
CHUNK_BYTES = 1024
BEGIN_BYTES_MAX = 1800

# A board answers at once, unless it writes to flash or its connection is being made again.
_ANSWER_S = 5.0
# While a board copies and checks its files it says so; a slow flash needs some 10 s for 100 kB.
_COMMIT_S = 120.0


class Link(Protocol):
    """A connection to a broker that the board is connected to as well."""

    def publish(self, topic: str, payload: bytes) -> None:
        """QoS 1."""

    def subscribe(self, topic: str, on_message: Callable[[str, bytes, bool], None]) -> None:
        """QoS 1; *on_message* gets topic, payload and whether it was retained. Another thread may call it."""


class Update:
    """One update of the board *name*. `run` ends when the board runs it; `BoardError` when it doesn't."""

    def __init__(
        self, link: Link, name: str, bundle: Bundle, removed: list[str] | None = None, key: bytes | None = None
    ) -> None:
        if not name or any(character in name for character in "+#"):
            raise BoardError(f"'{name}' can't be a board's name")
        self._link = link
        self._name = name
        self._files = sorted(bundle.version.items())
        removed = sorted(removed or [])
        self.id = identify({name: sha256(data) for name, data in self._files}, removed)
        files = [[name, len(data), sha256(data)] for name, data in self._files]
        text = json.dumps({"id": self.id, "files": files, "remove": removed}, separators=(",", ":")).encode()
        mac = hmac.new(key, text, hashlib.sha256).hexdigest().encode() if key else b""
        self._begin = mac + b"\n" + text
        if len(self._begin) > BEGIN_BYTES_MAX:
            raise BoardError(f"{len(files)} files are too many for one update: a board takes some 15 at once")
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._is_committed = False  # set by `run`: from then on a retained word about this update is news

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self._files)

    def run(
        self,
        patience_s: float = 60.0,
        trial_s: float = 300.0,
        on_bytes: Callable[[int], None] = lambda count: None,
        on_state: Callable[[str], None] = lambda text: None,
    ) -> None:
        """*patience_s*: without an answer. *trial_s*: until the board has restarted and connected, or fallen back."""
        base = f"{self._name}/state/update"
        self._link.subscribe(base, self._hear_state)
        self._link.subscribe(base + "/at", self._hear_at)
        self._send("begin", self._begin)
        need = self._await_state({"receiving"}, patience_s, ("begin", self._begin))["need"]
        on_bytes(self.size - sum(self._left(index, offset) for index, offset in need))
        while need:
            for index, offset in need:
                self._send_file(index, offset, patience_s, on_bytes)
            self._send("ask", b"")
            need = self._await_state({"receiving"}, patience_s)["need"]
        on_state("sent; the board checks it")
        self._send("commit", self.id.encode())
        self._is_committed = True
        last = self._await_state({"switching", "running", "failed"}, _COMMIT_S, ("commit", self.id.encode()))
        if last["state"] == "switching":
            on_state("the board restarts with it")
            last = self._await_state({"running", "failed"}, trial_s, None)
        if last["state"] == "failed":
            raise BoardError(f"{self._name} went back to its old version: {last['why']}")

    def _send_file(self, index: int, offset: int, patience_s: float, on_bytes: Callable[[int], None]) -> None:
        data = self._files[index][1]
        began = time.monotonic()
        is_first = True
        while is_first or offset < len(data):
            is_first = False
            chunk = data[offset : offset + CHUNK_BYTES]
            head = _CHUNK.pack(bytes.fromhex(self.id), index, offset, zlib.crc32(chunk))
            self._send("chunk", head + chunk)
            has = self._await_at(index)
            if has is None:
                if time.monotonic() - began > patience_s:
                    raise BoardError(self._silence(patience_s))
                continue
            began = time.monotonic()
            on_bytes(has - offset)
            offset = has  # less than before: its hash was wrong, or the power went before the last chunk was on flash

    # ---- what the board says ----

    def _await_at(self, index: int) -> int | None:
        """How much of the file the board has; None if it doesn't say."""
        until = time.monotonic() + _ANSWER_S
        while (left := until - time.monotonic()) > 0:
            try:
                said = self._said.get(timeout=left)
            except queue.Empty:
                return None
            if said.get("state") == "refused":
                raise BoardError(f"{self._name} refuses it: {said['why']}")
            if said.get("at") == index:
                return int(said["has"])
            if said.get("state") == "receiving":  # it was reset meanwhile: it says anew what it wants
                offsets = dict(said["need"])
                return int(offsets.get(index, len(self._files[index][1])))
            if said.get("state") == "idle":
                self._send("begin", self._begin)
        return None

    def _await_state(
        self, states: set[str], patience_s: float, again: tuple[str, bytes] | None = ("ask", b"")
    ) -> dict[str, Any]:
        """The next of *states*; meanwhile *again* is sent whenever nothing comes."""
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            try:
                said = self._said.get(timeout=min(left, _ANSWER_S))
            except queue.Empty:
                if again is not None:
                    self._send(*again)
                continue
            if said.get("state") == "refused":
                raise BoardError(f"{self._name} refuses it: {said['why']}")
            if said.get("state") in states:
                return said
            if said.get("state") == "committing":
                until = max(until, time.monotonic() + patience_s)
        raise BoardError(self._silence(patience_s))

    def _silence(self, seconds: float) -> str:
        return (
            f"{self._name} hasn't answered for {seconds:g} s. Is it connected to this broker, is that its name? "
            "It keeps what it has got: the same command goes on from there"
        )

    def _hear_state(self, _topic: str, payload: bytes, is_retained: bool) -> None:
        try:
            said = json.loads(payload)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        is_ours = said.get("id") == self.id and (self._is_committed or not is_retained)
        if is_ours or said.get("state") in ("refused", "idle"):
            self._said.put(said)

    def _hear_at(self, _topic: str, payload: bytes, _is_retained: bool) -> None:
        words = payload.decode("ascii", "replace").split()
        if len(words) == 3 and words[0] == self.id and words[1].isdigit() and words[2].isdigit():
            self._said.put({"at": int(words[1]), "has": int(words[2])})

    def _send(self, what: str, payload: bytes) -> None:
        self._link.publish(f"{self._name}/set/update/{what}", payload)

    def _left(self, index: int, offset: int) -> int:
        return len(self._files[index][1]) - offset

"""The laptop's side of a simulation: the broker, a subscriber that writes down what arrives, a sender of commands.
Knows the boards by name only.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from midge.boards.simulate import BoardError, Process
from midge.sim.ledger import Book

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

START_TIMEOUT_S = 30.0
LISTENING = r"listening on mqtt://127\.0\.0\.1:(\d+)"

_CONFIGURATION = """\
[[listener]]
port = 0

[store]
path = "{directory}/midge.db"
durability = "{durability}"

[discovery]
announce = false
"""

_SERIAL = """
[[listener]]
type = "serial"
device = "{device}"
"""

# What its boards say comes here under HUB/; what is said to HUB/sim/NAME/set goes to them.
_BRIDGE = """
[[bridge]]
name = "{name}"
address = "mqtt://127.0.0.1:{port}"
topics = [
  {{ filter = "sim/+/data", direction = "in", qos = 2, local_prefix = "{name}/" }},
  {{ filter = "sim/+/set", direction = "out", qos = 2, local_prefix = "{name}/" }},
]
"""


async def start_broker(
    directory: Path, durability: str, devices: list[str], hubs: Mapping[str, int]
) -> tuple[Process, int]:
    """`midge broker` with a listener for each of *devices* and a bridge to each hub's port; its own port."""
    text = _CONFIGURATION.format(directory=directory.as_posix(), durability=durability)
    text += "".join(_SERIAL.format(device=device) for device in devices)
    text += "".join(_BRIDGE.format(name=name, port=port) for name, port in hubs.items())
    config = directory / "midge.toml"
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "midge", "broker", "--config", str(config)]
    process = Process("broker", command, {"PYTHONUNBUFFERED": "1"})
    try:
        await process.start()
        found = await process.wait_for_line(LISTENING, START_TIMEOUT_S)
        # What a hub gets before it has the bridge's session, nobody waits for.
        for name in hubs:
            await process.wait_for_line(f"bridge {name} to .*: connected", START_TIMEOUT_S)
    except BaseException:
        await process.stop()
        raise
    return process, int(found[1])


class Laptop:
    """Connects with `start`; `stop` it in any case."""

    def __init__(self, host: str, port: int, books: Mapping[str, Book], all_topics: bool = False) -> None:
        """*books*: of each board's messages, by its name. *all_topics*: some boards run programs of their own."""
        self.host, self.port, self.books = host, port, books
        self.others: Counter[str] = Counter()  # topics that aren't the simulator's, and how many came
        self.last_at = 0.0  # when the last message came, by time.monotonic
        self.count = 0
        self._all_topics = all_topics
        self._client: Client | None = None
        self._subscribed = asyncio.Event()

    async def start(self) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        loop = asyncio.get_running_loop()
        filters = ["#"] if self._all_topics else ["sim/+/data", "+/sim/+/data"]
        client = self._client = Client(CallbackAPIVersion.VERSION2, "midge-sim-laptop")

        def soon(function: object, *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end
                loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]

        def take(_client: Client, _userdata: object, message: MQTTMessage) -> None:
            soon(self._take, message.topic, bytes(message.payload), message.qos, time.time())

        # QoS 2, so that what is doubled on the way here isn't counted as the board's.
        client.on_connect = lambda client, *_: client.subscribe([(name, 2) for name in filters])
        client.on_subscribe = lambda *_: soon(self._subscribed.set)
        client.on_message = take
        try:
            client.connect(self.host, self.port)
        except OSError as error:
            raise BoardError(f"can't connect to the broker {self.host}:{self.port}: {error}") from None
        client.loop_start()
        try:
            await asyncio.wait_for(self._subscribed.wait(), START_TIMEOUT_S)
        except TimeoutError:
            raise BoardError(f"the broker {self.host}:{self.port} doesn't answer a SUBSCRIBE") from None

    def stop(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def command(self, topic: str, name: str, book: Book) -> None:
        assert self._client is not None
        now = time.time()
        book.made(name, 1, now)
        self._client.publish(topic, f"{name} {int(now * 1000)}", qos=1)

    def _take(self, topic: str, payload: bytes, qos: int, now: float) -> None:
        self.count += 1
        self.last_at = time.monotonic()
        parts = topic.split("/")
        book = self.books.get(parts[-2]) if len(parts) >= 3 and parts[-1] == "data" and parts[-3] == "sim" else None
        if book is None:
            if parts[-3:-2] != ["sim"] or parts[-1] != "set":  # else our own command
                self.others[topic] += 1
            return
        name, made_ms = payload.split()[:2]
        book.arrived(name.decode(), qos, int(made_ms) / 1000, now)

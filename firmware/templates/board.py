"""A board's client, made from its settings: it tells its status and its tracebacks, and takes updates.
It must not know what the board is for.
"""
import asyncio

import midge_boot as boot
from basics import find_updater, tell_traceback
from midge_client import Client, MQTTError

RETRY_S = 5


# `on_command(name, payload)`: for NAME/set/... but for updates; called at once, so be quick.
# `dial`, `link`, ...: Client's.
class Board:
    def __init__(self, on_command=None, **options):
        self.name = boot.settings("name", "board")
        self._on_command = on_command
        self._needs_network = options.get("link") is not None
        self._updater = find_updater(self.name, self._store)
        will = (self.name + "/status", b"offline", 1, True)
        self.client = Client(self.name, boot.settings("broker.host", "192.168.4.1"), boot.settings("broker.port", 1883),
                             boot.settings("broker.user"), boot.settings("broker.password"), keepalive=30, will=will,
                             on_message=self._receive, **options)

    # Only the first connection needs patience: once made, the client keeps it.
    async def connect(self):
        while self._needs_network and not boot.settings("wifi.ssid"):
            print("no network yet: midge boards set PORT wifi.ssid=... wifi.password broker.host=...")
            await asyncio.sleep(RETRY_S)
        while True:
            try:
                await self.client.connect()
                break
            except (OSError, MQTTError) as error:
                print("no connection:", error)
                await asyncio.sleep(RETRY_S)
        await self.client.subscribe(self.name + "/set/#", qos=1)
        self._updater.connected()
        tell_traceback(self.name, self._store)
        await self.publish("status", "online", retain=True)

    async def publish(self, name, text, retain=False):
        try:
            await self.client.publish(self.name + "/" + name, str(text).encode(), qos=1, retain=retain)
        except MQTTError as error:
            print("not delivered:", error)  # no broker for a minute: the next one will be fresher

    def _store(self, topic, payload, retain):
        self.client.store(topic, payload, 1, retain)

    def _receive(self, topic, payload, _retained):
        if not self._updater.receive(topic, payload) and self._on_command:
            self._on_command(topic[len(self.name) + 5 :], bytes(payload))

"""A link with a delay, for tests without an event loop: midge.sim's, in a thread of its own.

Knows nothing of MQTT.
"""

import asyncio
import queue
import threading

from midge.sim.link import Conditions, Link, Traffic


class DelayingProxy:
    """`port` leads to *port* here, *delay_s* each way."""

    def __init__(self, port: int, delay_s: float):
        self._closed: queue.Queue[Traffic] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._link = Link(port, Conditions(delay_s), on_closed=self._closed.put)
        self._call(self._link.start())
        self.port = self._link.port

    def traffic(self) -> Traffic:
        """Of the next connection that the board has closed."""
        return self._closed.get(timeout=20)

    def _call(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _close(self) -> None:
        self._link.close()

    def __enter__(self) -> "DelayingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

"""The `auth` hook: a function of an installed package decides who is let in, and to which topics.
Knows how to find and call it off the event loop, not what it asks.

A package names its function in the entry point group "midge.auth" (docs/access.md); the function takes a
`Login` and returns an `Admit`, True, False, or None for "not mine". It may be `async`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from midge.access.errors import AccessFileError

log = logging.getLogger("midge.access")

GROUP = "midge.auth"

# Calls of a function that is not async, at the same time: most of their time they wait for a server.
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Login:
    """Who wants in. *password* is as it came; *version* is 3 (MQTT 3.1), 4 (3.1.1) or 5."""

    client_id: str
    username: str | None
    password: bytes | None
    address: str  # "192.0.2.1:50000"; of IPv6 "2001:db8::1:50000"
    version: int


@dataclass(frozen=True, slots=True)
class Admit:
    """The client is let in. *publish* and *subscribe* are topic filters, in which %c and %u stand for the client
    identifier and the user name; both None: the ACL file says what it may do, or it may do everything."""

    username: str | None = None  # None: as the client says
    publish: Sequence[str] | None = None
    subscribe: Sequence[str] | None = None
    expires_at: float | None = None  # s since the epoch; then it is disconnected


Verdict = Admit | bool | None


class Hook:
    """One function, found by its entry point's *name*. AccessFileError: it isn't there, or can't be loaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = _find(name)
        self._is_async = inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(
            getattr(self._function, "__call__", None)  # noqa: B004 — an object with an async __call__
        )
        self._threads: ThreadPoolExecutor | None = None  # of a function that isn't async
        self._loop: asyncio.AbstractEventLoop | None = None  # of one that is: the broker's isn't lent to it

    def ask(self, login: Login) -> Future[Verdict]:
        """The verdict comes later; what the function raises comes with it."""
        if not self._is_async:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, f"auth-{self.name}")
            return self._threads.submit(self._function, login)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name=f"auth-{self.name}", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(self._call(login), self._loop)

    async def _call(self, login: Login) -> Verdict:
        return await self._function(login)  # type: ignore[no-any-return]

    def close(self) -> None:
        """What is still asked is not waited for."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


def _find(name: str) -> Callable[[Login], Any]:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        installed = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP))) or "none"
        raise AccessFileError(f"auth hook {name!r}: no installed package has it; there are: {installed}")
    try:
        function = found[0].load()
    except Exception as error:
        raise AccessFileError(f"auth hook {name!r} ({found[0].value}): {type(error).__name__}: {error}") from error
    if not callable(function):
        raise AccessFileError(f"auth hook {name!r} ({found[0].value}): not a function")
    return function  # type: ignore[no-any-return]

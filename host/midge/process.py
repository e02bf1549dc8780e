"""The broker as a process of its system: what systemd is told, how many files it may open.
Knows the operating system, nothing of the broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import time

log = logging.getLogger("midge.process")

# Open files beside one per connection: the store's, the listeners', bridges', standard streams, libraries.
_FILES_BESIDE = 100

# s that threads get to end by themselves.
_THREADS_TIMEOUT_S = 0.2


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3)). Nobody there: nothing to do."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("can't notify %s: %s", path, error.strerror)


def watchdog_interval_s() -> float | None:
    """How often systemd wants to hear that we live: half of WatchdogSec= (sd_watchdog_enabled(3)). None: it
    doesn't ask, or it asks another process."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdigit() or int(text) == 0 or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 2e6


async def keep_watchdog_quiet() -> None:
    """As long as the event loop turns. Ends at once if nobody asks."""
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def leave_busy_threads() -> None:
    """End this process now, in good order, if threads are at work that nobody waits for: an auth hook that
    doesn't answer, a look-up of a name. Python would wait for them."""
    deadline = time.monotonic() + _THREADS_TIMEOUT_S
    for thread in threading.enumerate():
        if thread is threading.main_thread() or thread.daemon:
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            log.info("not waited for: %s", thread.name)
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)


def allow_connections(count: int) -> None:
    """Raise the limit of open files so that there may be *count* connections, as far as this user may."""
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = count + _FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # macOS refuses more than kern.maxfilesperproc, whatever the limit says
        allowed = soft
    if allowed < wanted:
        log.warning(
            "limits.max_connections is %d, but this process may open only %d files%s",
            count,
            allowed,
            ": raise LimitNOFILE= in the unit, or `ulimit -n`" if sys.platform == "linux" else "",
        )

"""What can be wrong with a set-up, looked at from the laptop: each finding says what to do.
Knows the operating system, the configuration and MQTT's first packet; changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midge.checks import check as check_config
from midge.checks import is_loopback, store_problem
from midge.config import Config, ConfigError

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"

_CONNECT_TIMEOUT_S = 2.0
# CONNECT of MQTT 3.1.1, clean session, keep alive 10 s, a client identifier of its own; and DISCONNECT.
_HELLO = b"\x10\x1a\x00\x04MQTT\x04\x02\x00\x0a\x00\x0emidge-doctor-\x31"
_BYE = b"\xe0\x00"
_MQTT_ANSWER = 0x20  # CONNACK, MQTT 3.1.1 §3.2

_FREE_PROBLEM, _FREE_WARNING = 100_000_000, 1_000_000_000  # bytes
_QUICK_CHECK_MOST = 200_000_000  # bytes of a store that are checked within a second or two
_MOVE_AWAY = "move it away to start empty; docs/what-lasts.md"
_TIME_ERROR = 5  # adjtimex(2): the clock isn't synchronised
_YEAR_LEAST = 2025  # this was written in 2026; a clock before it was never set
_FILES_BESIDE = 100  # open files beside one per connection, as in `midge.process`


@dataclass(frozen=True)
class Finding:
    """*about* is one word; *advice* is empty where there is nothing to do."""

    about: str
    status: str
    text: str
    advice: str = ""


def system() -> Iterator[Finding]:
    """Interpreter, clock."""
    from midge import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("midge", OK, f"{__version__} on Python {version}, {sys.platform}")
    if time.gmtime().tm_year < _YEAR_LEAST:
        text = f"the clock says {time.strftime('%Y-%m-%d %H:%M')}: certificates and ages of messages will be wrong"
        yield Finding("clock", PROBLEM, text, "set it: sudo timedatectl set-ntp true")
    elif (state := _clock_state()) == _TIME_ERROR:
        yield Finding(
            "clock",
            NOTE,
            f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}; the kernel doesn't know it synchronised (in a container that "
            "means nothing)",
            "if it drifts: sudo timedatectl set-ntp true",
        )
    else:
        told = "synchronised" if state is not None else "not known whether synchronised"
        yield Finding("clock", OK, f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {told}")


def _clock_state() -> int | None:
    """What adjtimex(2) says; None where it isn't there."""
    try:
        return int(ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(512)))
    except (AttributeError, OSError, TypeError):
        return None


def configuration(config: Config, directory: Path) -> Iterator[Finding]:
    """Can it be used, and does the system grant what it asks for?"""
    try:
        check_config(config, directory)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("config", PROBLEM, line, "see docs/configuration.md, or: midge broker --print-config")
    else:
        yield Finding("config", OK, "can be used")
    yield from _open_files(config.limits.max_connections)


def _open_files(max_connections: int) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < max_connections + _FILES_BESIDE:
        text = f"{max_connections} connections are allowed, but only {most} open files"
        advice = f"raise it (LimitNOFILE=, ulimit -n), or set limits.max_connections = {most - _FILES_BESIDE}"
        yield Finding("files", WARNING, text, advice)


def store(config: Config, directory: Path) -> Iterator[Finding]:
    """Is it readable, and is there room?"""
    if config.store.path == ":memory:":
        yield Finding("store", NOTE, "in memory: nothing outlives the broker", "set store.path to keep messages")
        return
    path = directory / config.store.path
    problem = store_problem(path)
    if problem:
        text, _, advice = problem.partition(": ")
        yield Finding("store", PROBLEM, text, advice)
    elif path.exists():
        yield _read_store(path)
    else:
        yield Finding("store", OK, f"{path}: not there yet, will be made")
    yield _room(path)


def _read_store(path: Path) -> Finding:
    size = path.stat().st_size
    try:
        # Read-only: it disturbs no broker that runs on it.
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
        try:
            if size > _QUICK_CHECK_MOST:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return Finding("store", OK, f"{path}: {_bytes(size)}, too large to be checked whole here")
            [(told,), *_] = database.execute("PRAGMA quick_check(1)").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        return Finding("store", PROBLEM, f"{path} can't be read: {error}", _MOVE_AWAY)
    if told != "ok":
        return Finding("store", PROBLEM, f"{path} is damaged: {told}", _MOVE_AWAY)
    return Finding("store", OK, f"{path}: {_bytes(size)}, readable and sound")


def _room(path: Path) -> Finding:
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    text = f"{_bytes(usage.free)} of {_bytes(usage.total)} free at {path}"
    if usage.free < _FREE_PROBLEM:
        return Finding("disk", PROBLEM, text, "make room: a full disk makes the broker refuse what must be kept")
    if usage.free < _FREE_WARNING:
        return Finding("disk", WARNING, text, "make room before it is full")
    return Finding("disk", OK, text)


def listeners(config: Config) -> Iterator[Finding]:
    """Is a broker there, or another program in its place? Can others reach it?"""
    for listener in config.listener:
        if listener.type in ("unix", "serial"):
            continue
        name = f"{listener.bind}:{listener.port}"
        if not listener.port:
            yield Finding("port", OK, f"{name}: the system chooses one at each start")
            continue
        at = {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(listener.bind, listener.bind)
        answer = knock(at, listener.port, is_mqtt=listener.type == "tcp")
        yield _of_port(name, listener.port, answer)
        yield from _reach(listener.bind, listener.port, answer, listener.type == "tcp")


def knock(host: str, port: int, is_mqtt: bool = True) -> str:
    """What is there: "broker", "other", "silent" (accepted, said nothing), "closed" or "unreachable"."""
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT_S) as connection:
            if not is_mqtt:
                return "silent"
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.sendall(_HELLO)
            answer = connection.recv(4)
            if answer[:1] and answer[0] == _MQTT_ANSWER:
                connection.sendall(_BYE)
                return "broker"
            return "other"
    except ConnectionRefusedError:
        return "closed"
    except ConnectionError:
        return "other"
    except TimeoutError:
        return "silent"
    except OSError:
        return "unreachable"


def _of_port(name: str, port: int, answer: str) -> Finding:
    if answer == "broker":
        return Finding("port", OK, f"{name}: an MQTT broker answers")
    if answer == "closed":
        return Finding("port", NOTE, f"{name}: free, no broker runs there", "start one: midge broker")
    who = _owner_of(port)
    by = f" ({who})" if who else ""
    if answer == "silent":
        return Finding("port", NOTE, f"{name}: something listens{by}, but answers no MQTT in the clear")
    if answer == "unreachable":
        return Finding("port", PROBLEM, f"{name}: not an address of this machine that can be reached", "correct `bind`")
    return Finding("port", PROBLEM, f"{name}: another program has it{by}", "end it, or choose another port: --port")


def _owner_of(port: int) -> str:
    """The name of the process that listens there, as far as /proc shows it to us."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) in inodes for each in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()}, process {process.name}"
        except OSError:
            continue  # another user's, or gone
    return ""


def own_addresses() -> list[str]:
    """IPv4 addresses of this machine that others on its networks can use."""
    import ifaddr

    found = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    return [each for each in found if not each.startswith(("127.", "169.254."))]


def _reach(bind: str, port: int, answer: str, is_mqtt: bool) -> Iterator[Finding]:
    if is_loopback(bind):
        # A broker that was started with --bind listens elsewhere than the file says, or the defaults.
        others = own_addresses() if answer == "broker" else []
        reached = [each for each in others if knock(each, port) == "broker"]
        for address in reached:
            yield Finding("network", OK, f"boards can use mqtt://{address}:{port}: what runs listens there, too")
        if reached:
            yield from _firewall(port)
            return
        yield Finding(
            "network",
            NOTE,
            f"{bind}:{port} is for this machine only: boards can't reach it",
            "to let them in: bind = \"0.0.0.0\" and access.password_file (docs/access.md)",
        )
        return
    addresses = own_addresses() if bind in ("0.0.0.0", "::") else [bind]
    if not addresses:
        yield Finding("network", WARNING, "this machine has no network address", "connect it to the boards' network")
    if answer != "broker" or not is_mqtt:
        return
    for address in addresses:
        if knock(address, port) == "broker":
            yield Finding("network", OK, f"boards can use mqtt://{address}:{port}")
        else:
            yield Finding("network", PROBLEM, f"no broker answers on {address}:{port}", "see `bind`, and the firewall")
    yield from _firewall(port)


def _firewall(port: int) -> Iterator[Finding]:
    """What can be seen of it without being root."""
    try:
        is_on = "ENABLED=yes" in Path("/etc/ufw/ufw.conf").read_text()
    except OSError:
        is_on = False
    if is_on:
        yield Finding("firewall", WARNING, "ufw is on, and may keep boards out", f"sudo ufw allow {port}/tcp")
    elif shutil.which("firewall-cmd"):
        advice = f"sudo firewall-cmd --permanent --add-port={port}/tcp; sudo firewall-cmd --reload"
        yield Finding("firewall", NOTE, "firewalld is installed; if boards can't connect:", advice)


def bridges(config: Config) -> Iterator[Finding]:
    """Does the other side answer?"""
    from midge.config.bridges import parse_address

    for bridge in config.bridge:
        for text in bridge.addresses:
            if text.startswith("serial:"):
                continue
            address = parse_address(text)
            answer = knock(address.host, address.port, is_mqtt=not address.is_tls)
            if answer in ("broker", "silent"):
                yield Finding("bridge", OK, f"{bridge.name}: {text} answers")
            else:
                advice = "is the board on, and on this network? midge find lists what announces itself"
                yield Finding("bridge", PROBLEM, f"{bridge.name}: {text} doesn't answer ({answer})", advice)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")

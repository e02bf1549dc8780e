"""What a configuration can't be told by its keys alone: files that must be there and can be used, addresses.
Knows what is looked at, changes nothing and opens no socket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import combinations, product
from pathlib import Path

from midge.admitting import RulesLoader, asks
from midge.bridge.dial import tls_context
from midge.config import Bridge, BridgeTopic, Config, ConfigError, parse_address
from midge.listening import certificates_of
from midge.protocol.topics import overlap
from midge.store.schema import VERSION as SCHEMA_VERSION

# The first bytes of an SQLite file, and where our numbers stand (https://www.sqlite.org/fileformat.html §1.3).
_SQLITE_MAGIC = b"SQLite format 3\0"
_USER_VERSION_AT = 60


def check_access(config: Config) -> None:
    """ConfigError: it would listen to the network without asking anybody who they are."""
    if config.access.allow_anonymous is not None:
        return
    for listener in config.listener:
        is_local = listener.type in ("unix", "serial")
        if is_local or listener.require_certificate or listener.allow_anonymous is not None:
            continue
        if not (asks(config, listener) or is_loopback(listener.bind)):
            raise ConfigError(
                f"refusing to listen on {listener.bind}, which other machines can reach, without "
                "authentication: set access.password_file (or jwt, or auth_hook), or pass --allow-anonymous (or set "
                "access.allow_anonymous = true) if anybody on that network may publish and subscribe, or "
                "bind 127.0.0.1"
            )


def is_loopback(bind: str) -> bool:
    if bind == "localhost":
        return True
    try:
        return ip_address(bind).is_loopback
    except ValueError:
        return False


def check(config: Config, directory: Path) -> None:
    """Everything that `midge broker` would look at before it listens, except that the store is not opened:
    a broker may be running on it. ConfigError: all that is wrong, a line each."""
    problems: list[str] = []
    for look in (check_access, _check_rules, _check_certificates, _check_bridges):
        try:
            look(config)
        except ConfigError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}")
    if config.store.path != ":memory:":
        problems += filter(None, [store_problem(directory / config.store.path)])
    if problems:
        raise ConfigError("\n".join(problems))


def warnings(config: Config) -> list[str]:
    """What can be used, and is hardly meant; a line each."""
    found: list[str] = []
    for one, other in combinations(config.bridge, 2):
        for address in sorted(_places(one) & _places(other)):
            for topic_filter, direction in _carried_twice(one, other):
                way = "bring {} from" if direction == "in" else "take {} to"
                found.append(
                    f"the bridges {one.name!r} and {other.name!r} both {way.format(ascii(topic_filter))} {address}: "
                    "unless the broker there marks what crosses bridges, as midge does in MQTT 5.0, each such message "
                    "comes twice"
                )
    return found


def _places(bridge: Bridge) -> set[str]:
    """Where the brokers are that it dials, whatever it speaks with them."""
    addresses = map(parse_address, bridge.addresses)
    return {f"{address.host.lower()}:{address.port}" if address.port else address.host for address in addresses}


def _carried_twice(one: Bridge, other: Bridge) -> Iterator[tuple[str, str]]:
    """(filter, direction) of what both carry the same way from one topic name to one topic name."""
    for mine, its in product(one.topics, other.topics):
        for direction in ("in", "out"):
            if not {mine.direction, its.direction} <= {direction, "both"} or not _is_named_alike(mine, its):
                continue
            filters = [topic.remote_prefix + topic.filter for topic in (mine, its)]
            if direction == "out":
                filters = [topic.local_prefix + topic.filter for topic in (mine, its)]
            if overlap(*filters):
                yield filters[0], direction


def _is_named_alike(one: BridgeTopic, other: BridgeTopic) -> bool:
    """Whether both have the same name here for what has one name there: the longer prefixes go on in the same way."""
    if len(one.remote_prefix) > len(other.remote_prefix):
        one, other = other, one
    if not other.remote_prefix.startswith(one.remote_prefix):
        return False
    return other.local_prefix == one.local_prefix + other.remote_prefix.removeprefix(one.remote_prefix)


def _check_rules(config: Config) -> None:
    loader = RulesLoader(config)
    for listener in config.listener:
        loader.rules_of(listener)
    loader.close_hooks()


def _check_certificates(config: Config) -> None:
    for listener in config.listener:
        certificates_of(config, listener)


def _check_bridges(config: Config) -> None:
    for bridge in config.bridge:
        tls_context(bridge, config.path)


def store_problem(path: Path) -> str:
    """Why the store can't be written at *path*, and what to do about it; "" if nothing speaks against it. Opens
    it only to read its first bytes: that disturbs no broker that runs on it."""
    if not os.path.lexists(path):
        return _directory_problem(path.parent)
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        return f"{path}: {error.strerror}: give another path for the store"
    if head and not head.startswith(_SQLITE_MAGIC):
        return f"{path} is not a store of midge: move it away to start empty, or give another path for the store"
    version = int.from_bytes(head[_USER_VERSION_AT : _USER_VERSION_AT + 4], "big")
    if version > SCHEMA_VERSION:
        return (
            f"{path} was written by a newer midge (store version {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade midge, or give another path for the store"
        )
    if not os.access(path, os.W_OK):
        return _unwritable(path)
    return _directory_problem(path.parent)  # its journal is made beside it


def _directory_problem(directory: Path) -> str:
    while not os.path.lexists(directory):
        directory = directory.parent  # it will be made
    if not directory.is_dir():
        return f"{directory} is not a directory: choose another for the store with --data"
    return "" if os.access(directory, os.W_OK | os.X_OK) else _unwritable(directory)


def _unwritable(path: Path) -> str:
    try:
        is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        is_read_only = False
    if is_read_only:
        return f"{path} is on a file system that is mounted read-only: choose another directory with --data"
    who = f"this process (user {os.geteuid()})"
    return f"{path} is not writable for {who}: change its owner, or choose another directory with --data"

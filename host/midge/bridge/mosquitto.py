"""Mosquitto's bridge sections as ours: `mosquitto.conf` in, TOML and remarks out.
Knows both vocabularies (mosquitto.conf(5), "Configuring Bridges"), no connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from midge.config.section import literal

# What a bridge is told there and here by one word each.
_STRINGS = {
    "remote_clientid": "client_id",
    "clientid": "client_id",
    "remote_username": "username",
    "username": "username",
    "remote_password": "password",
    "password": "password",
    "bridge_cafile": "cafile",
    "bridge_certfile": "certfile",
    "bridge_keyfile": "keyfile",
}
_START_TYPES = {"automatic": "always", "lazy": "on-demand"}
# Ours do that anyway, or have no need of it.
_NO_MATTER = {
    "round_robin",
    "try_private",
    "bridge_attempt_unsubscribe",
    "local_clientid",
    "local_username",
    "local_password",
    "local_cleansession",
    "bridge_outgoing_retain",
    "bridge_bind_address",
    "bridge_tcp_keepalive",
    "bridge_tcp_user_timeout",
    "bridge_receive_maximum",
    "bridge_reload_type",
    "bridge_max_topic_alias",
    "bridge_session_expiry_interval",
}


class NotUnderstood(ValueError):
    """A line that Mosquitto wouldn't take either; the text names file and line."""


@dataclass
class Imported:
    """One bridge. `remarks`: what of it is different here, or missing."""

    name: str
    keys: dict[str, object] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    topics: list[dict[str, object]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    is_tls: bool = False

    def toml(self) -> str:
        scheme = "mqtts" if self.is_tls else "mqtt"
        address, *others = [f"{scheme}://{address}" for address in self.addresses or ["ADDRESS-IS-MISSING"]]
        lines = [f"# {remark}" for remark in self.remarks]
        lines += ["[[bridge]]", f"name = {literal(self.name)}", f"address = {literal(address)}"]
        if others:
            lines.append(f"alternatives = {literal(others)}")
        lines += [f"{key} = {literal(value)}" for key, value in self.keys.items()]
        lines += ["topics = [", *(f"  {literal(topic)}," for topic in self.topics), "]"]
        return "\n".join(lines) + "\n"


def read(path: Path) -> list[Imported]:
    """The bridges of *path* and of the files it includes. OSError: a file can't be read; NotUnderstood."""
    found: list[Imported] = []
    for file, number, words in _lines(path):
        name, *values = words
        if name in ("connection", "bridge_connection"):
            if len(values) != 1:
                raise NotUnderstood(f"{file}:{number}: connection needs a name")
            found.append(Imported(values[0].replace("/", "-").replace("+", "-").replace("#", "-")))
        elif name in ("listener", "plugin", "auth_plugin"):
            continue  # what follows belongs to it only by our ignoring it
        elif found:
            try:
                _take(found[-1], name, values)
            except (ValueError, IndexError) as error:
                raise NotUnderstood(f"{file}:{number}: {' '.join(words)}: {error}") from None
    for bridge in found:
        if not bridge.topics:
            bridge.remarks.append("It has no topic line, so nothing would cross.")
        if not bridge.addresses:
            bridge.remarks.append("It has no address line.")
    return found


def _lines(path: Path) -> list[tuple[Path, int, list[str]]]:
    found: list[tuple[Path, int, list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "include_dir" and len(words) == 2:
            for file in sorted(Path(words[1]).glob("*.conf")):
                found += _lines(file)
        else:
            found.append((path, number, words))
    return found


def _take(bridge: Imported, name: str, values: list[str]) -> None:
    """One line of a bridge. ValueError, IndexError: its values can't be used."""
    if name in ("address", "addresses"):
        bridge.addresses += [_address(value) for value in values]
    elif name == "topic":
        _topic(bridge, values)
    elif name in _STRINGS:
        bridge.keys[_STRINGS[name]] = " ".join(values)
        bridge.is_tls = bridge.is_tls or name == "bridge_cafile"
    elif name == "bridge_capath":
        bridge.is_tls = True
        bridge.remarks.append(f"bridge_capath {values[0]}: name one file with cafile, or the system's are used.")
    elif name == "bridge_insecure":
        bridge.keys["check_hostname"] = not _is_true(values[0])
    elif name == "bridge_protocol_version":
        bridge.keys["version"] = {"mqttv50": "5.0", "mqttv311": "3.1.1"}.get(values[0], "auto")
        if values[0] == "mqttv31":
            bridge.remarks.append("bridge_protocol_version mqttv31: 3.1 isn't spoken.")
    elif name == "keepalive_interval":
        bridge.keys["keep_alive"] = max(5, int(values[0]))
    elif name == "bridge_max_packet_size":
        bridge.keys["max_packet_size"] = int(values[0])
    elif name == "restart_timeout":
        _restart_timeout(bridge, [float(value) for value in values])
    elif name == "start_type":
        if values[0] in _START_TYPES:
            bridge.keys["start"] = _START_TYPES[values[0]]
        else:
            bridge.remarks.append(f'start_type {values[0]}: there is no such type here; it is "always".')
    elif name == "idle_timeout":
        bridge.keys["idle_timeout"] = float(values[0])
    elif name == "threshold":
        bridge.keys["threshold"] = int(values[0])
    elif name == "notifications":
        bridge.keys["notifications"] = _is_true(values[0])
    elif name == "notifications_local_only":
        if _is_true(values[0]):
            bridge.keys["notifications"] = False
    elif name == "cleansession":
        if _is_true(values[0]):
            bridge.remarks.append("cleansession true: here the session always lasts; nothing is lost while away.")
    elif name not in _NO_MATTER:
        bridge.remarks.append(f"{' '.join([name, *values])}: has no counterpart here.")


def _restart_timeout(bridge: Imported, values: list[float]) -> None:
    """One value: always that long; two: from the first, doubling, to the second."""
    bridge.keys["reconnect_min"] = max(0.1, values[0])
    bridge.keys["reconnect_max"] = max(0.1, values[-1])


def _address(text: str) -> str:
    """HOST, HOST:PORT, [IPV6]:PORT."""
    if text.count(":") > 1 and not text.startswith("["):
        return f"[{text}]"
    return text


def _is_true(text: str) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise ValueError("true or false is expected")
    return text in ("true", "1")


def _topic(bridge: Imported, values: list[str]) -> None:
    """topic PATTERN [[[out|in|both] QOS] LOCAL-PREFIX REMOTE-PREFIX]; "" is an empty pattern or prefix."""
    pattern, direction, qos, local, remote = [*values, *["", "out", "0", '""', '""'][len(values) :]][:5]
    if direction not in ("in", "out", "both"):
        raise ValueError("the direction is in, out or both")
    if qos not in ("0", "1", "2"):
        raise ValueError("the QoS is 0, 1 or 2")
    pattern, local, remote = ("" if text == '""' else text for text in (pattern, local, remote))
    if not pattern:
        # One topic that has another name there: its last level is the pattern of both, where they share it.
        head, slash, pattern = local.rpartition("/")
        if not pattern or not remote.endswith(pattern) or remote[: -len(pattern)][-1:] not in ("", "/"):
            bridge.remarks.append(
                f"topic {' '.join(values)}: a topic of another name there has no counterpart here; it is left out."
            )
            return
        local, remote = head + slash, remote[: -len(pattern)]
    topic: dict[str, object] = {"filter": pattern, "direction": direction, "qos": int(qos)}
    if local:
        topic["local_prefix"] = local
    if remote:
        topic["remote_prefix"] = remote
    bridge.topics.append(topic)

"""Mosquitto's ACL files: which topics a client may read and write.
Knows the rules of mosquitto.conf(5), not who is connected.

What that page leaves open is as Mosquitto 2.0 does it: the rules of the user come before the patterns, in
each of the two a denial comes before what is granted, and the first that matches decides. So a `topic`
that grants is stronger than a `pattern` that denies.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Flag
from pathlib import Path

from midge.access.errors import AccessFileError
from midge.protocol.errors import ProtocolError
from midge.protocol.topics import check_topic_filter, matches, split_shared

log = logging.getLogger("midge.access")

# Topic names per client whose answer is remembered; a publisher that invents names must not fill memory.
_REMEMBERED_MAX = 256


class Right(Flag):
    DENY = 0
    READ = 1
    WRITE = 2
    READWRITE = 3


@dataclass(frozen=True, slots=True)
class Rule:
    right: Right
    topic_filter: str  # of a pattern: with %c and %u


@dataclass(slots=True)
class Acl:
    """A file's rules. None is the user name of those who gave none."""

    users: dict[str | None, list[Rule]] = field(default_factory=dict)
    patterns: list[Rule] = field(default_factory=list)

    def permissions(self, client_id: str, username: str | None) -> ClientPermissions:
        return ClientPermissions(self.users.get(username, []), self._patterns_of(client_id, username))

    def _patterns_of(self, client_id: str, username: str | None) -> list[Rule]:
        return filled_in(self.patterns, client_id, username)


def filled_in(patterns: Iterable[Rule], client_id: str, username: str | None) -> list[Rule]:
    """The rules of *patterns* that hold for this client, with its names in place of %c and %u."""
    if re.search("[+#]", client_id + (username or "")):
        return []  # would be a wildcard where one level is meant (CVE-2017-7650)
    names = {"%c": client_id, "%u": username or ""}
    return [
        Rule(rule.right, re.sub("%[cu]", lambda match: names[match[0]], rule.topic_filter))
        for rule in patterns
        if username is not None or "%u" not in rule.topic_filter
    ]


class ClientPermissions:
    """What one client may do: `midge.core.access.Permissions`."""

    __slots__ = ("_groups", "_remembered")

    def __init__(self, user_rules: list[Rule], patterns: list[Rule]) -> None:
        # In each group the denials first; the sort keeps the order among equals.
        self._groups = [
            sorted(group, key=lambda rule: rule.right is not Right.DENY) for group in (user_rules, patterns)
        ]
        self._remembered: dict[str, Right] = {}

    def may_publish(self, topic: str) -> bool:
        return Right.WRITE in self._rights(topic)

    def may_read(self, topic: str) -> bool:
        return Right.READ in self._rights(topic)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether any topic that matches can be read, as far as filters tell. Mosquitto 2.0 grants every
        filter; where nothing could ever come, we say so."""
        _, wanted = split_shared(topic_filter)
        denied: list[str] = []
        for group in self._groups:
            denied += [rule.topic_filter for rule in group if rule.right is Right.DENY]
            if any(covers(deny, wanted) for deny in denied):
                return False
            for rule in group:
                granted = rule.topic_filter
                if (
                    Right.READ in rule.right
                    and overlap(granted, wanted)
                    and not any(covers(deny, granted) for deny in denied)
                ):
                    return True
        return False

    def _rights(self, topic: str) -> Right:
        rights = self._remembered.get(topic)
        if rights is None:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            rights = self._remembered[topic] = self._find_rights(topic)
        return rights

    def _find_rights(self, topic: str) -> Right:
        found = Right.DENY
        for group in self._groups:
            for rule in group:
                if rule.topic_filter and matches(rule.topic_filter, topic):
                    if rule.right is Right.DENY:
                        return found
                    found |= rule.right
        return found


def overlap(one: str, other: str) -> bool:
    """Whether some topic name matches both filters."""
    if one.startswith("$") != other.startswith("$") and (one[:1] in "+#" or other[:1] in "+#"):
        return False  # [MQTT-4.7.2-1]
    levels, others = one.split("/"), other.split("/")
    for level, its in zip(levels, others, strict=False):
        if "#" in (level, its):
            return True
        if level != its and "+" not in (level, its):
            return False
    shorter = min(len(levels), len(others))
    rest = levels[shorter:] or others[shorter:]
    return not rest or rest == ["#"]  # "sport/#" also matches "sport"


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic name that matches *narrow* matches *wide*."""
    if narrow == "#" or wide == narrow:
        return wide == narrow
    if not narrow.endswith("/#"):
        return matches(wide, narrow)
    return wide.endswith("#") and matches(wide, narrow[:-2])


def load(path: Path) -> Acl:
    """Read the file. AccessFileError: it can't be read, or a line is no rule."""
    acl = Acl()
    user: str | None = None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AccessFileError(f"ACL file {path}: {reason}") from None
    for number, line in enumerate(lines, 1):
        where = f"ACL file {path}:{number}"
        # Spaces may come first; a tab is part of a word, as Mosquitto has it.
        keyword, _, rest = line.rstrip().lstrip(" ").partition(" ")
        rest = rest.strip()
        if not keyword or keyword.startswith("#"):
            continue
        if keyword == "user":
            if not rest:
                raise AccessFileError(f"{where}: user without a name")
            user = rest
            acl.users.setdefault(user, [])
        elif keyword == "topic":
            acl.users.setdefault(user, []).append(_rule(rest, where))
        elif keyword == "pattern":
            rule = _rule(rest, where)
            if not re.search("%[cu]", rule.topic_filter):
                log.warning("%s: a pattern without %%c or %%u", where)
            acl.patterns.append(rule)
        else:
            raise AccessFileError(f"{where}: {keyword!r} is not allowed: user, topic or pattern")
    return acl


def _rule(text: str, where: str) -> Rule:
    """`[read|write|readwrite|deny] FILTER`"""
    if not text:
        raise AccessFileError(f"{where}: a rule without a topic")
    word, space, topic_filter = text.partition(" ")
    right = Right.READWRITE
    if not space:
        topic_filter = text
    elif word in ("read", "write", "readwrite", "deny"):
        right = Right[word.upper()]
        topic_filter = topic_filter.strip()
    else:
        raise AccessFileError(f"{where}: {word!r} is not allowed: read, write, readwrite or deny")
    try:
        check_topic_filter(topic_filter)
    except ProtocolError as error:
        raise AccessFileError(f"{where}: {error.message}") from None
    return Rule(right, topic_filter)

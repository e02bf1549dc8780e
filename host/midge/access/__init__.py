"""Who may connect, publish and subscribe: password files, ACL files, certificates.
Knows neither connections nor sessions, only what they ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from midge.access import passwords
from midge.access.acl import Acl
from midge.access.attempts import FailedLogins
from midge.core.access import Permissions
from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode

# Failed logins from one address in a minute. A board with a wrong password that dials again each second
# reaches it, and so can't lock out others behind the same address for longer than it misbehaves; a guesser
# gets 43,200 attempts a day. EMQX bans for 5 minutes after 15 in a minute; fail2ban after 5 in 10 minutes.
MAX_FAILED_LOGINS = 30


@dataclass(slots=True)
class Rules:
    """What all listeners share. A reload replaces `users` and `acl`."""

    executor: Executor  # hashes: never in the event loop's thread
    answered: Callable[[], None]  # called in the loop's thread after an answer that came later
    users: dict[str, str] | None = None  # hash by user name; None: no password file
    acl: Acl | None = None
    failed: FailedLogins = field(default_factory=lambda: FailedLogins(MAX_FAILED_LOGINS))


class ListenerAccess:
    """`midge.core.access.Access` of one listener."""

    def __init__(self, rules: Rules, allow_anonymous: bool) -> None:
        self.rules = rules
        self.allow_anonymous = allow_anonymous

    @property
    def is_open(self) -> bool:
        """Everybody is let in and may do everything: there is nothing to ask."""
        return self.allow_anonymous and self.rules.users is None and self.rules.acl is None

    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        rules = self.rules
        if connect.username is None or rules.users is None:
            # Without a password file a name is only a name, as Mosquitto has it.
            answer(ReasonCode.SUCCESS if self.allow_anonymous else ReasonCode.NOT_AUTHORIZED)
        elif rules.failed.is_refused(address, time.monotonic()):
            answer(ReasonCode.CONNECTION_RATE_EXCEEDED)
        else:
            self._check(rules.users, connect, address, answer)

    def _check(
        self, users: dict[str, str], connect: Connect, address: str, answer: Callable[[ReasonCode], None]
    ) -> None:
        assert connect.username is not None
        stored = users.get(connect.username)
        # Who asks for an unknown name waits as long as for a known one.
        hashed = stored or next(iter(users.values()), "")
        is_right = asyncio.get_running_loop().run_in_executor(
            self.rules.executor, passwords.verify, hashed, connect.password or b""
        )
        is_possible = stored is not None and connect.password is not None
        is_right.add_done_callback(partial(self._answer, is_possible, address, answer))

    def _answer(
        self,
        is_possible: bool,
        address: str,
        answer: Callable[[ReasonCode], None],
        is_right: asyncio.Future[bool],
    ) -> None:
        if is_right.cancelled():
            return  # the broker stops
        failed = self.rules.failed
        now = time.monotonic()
        if failed.is_refused(address, now):  # guesses side by side don't get past the limit
            answer(ReasonCode.CONNECTION_RATE_EXCEEDED)
        elif is_possible and is_right.result():
            answer(ReasonCode.SUCCESS)
        else:
            failed.add(address, now)
            answer(ReasonCode.BAD_USER_NAME_OR_PASSWORD)
        self.rules.answered()

    def still_admits(self, username: str | None, former_users: dict[str, str] | None) -> bool:
        """After a reload: whether who was let in by *former_users* would be let in now."""
        users = self.rules.users
        if username is None or users is None:
            return self.allow_anonymous
        return former_users is not None and users.get(username) == former_users.get(username, "")

    def permissions(self, client_id: str, username: str | None) -> Permissions | None:
        acl = self.rules.acl
        return None if acl is None else acl.permissions(client_id, username)


class CertificateAccess(ListenerAccess):
    """Of one connection: whose certificate names the user is let in, as that user. None: it names nobody."""

    def __init__(self, rules: Rules, identity: str | None) -> None:
        super().__init__(rules, allow_anonymous=False)
        self._identity = identity

    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        is_named = self._identity is not None
        answer(ReasonCode.SUCCESS if is_named else ReasonCode.BAD_USER_NAME_OR_PASSWORD)

    def still_admits(self, username: str | None, former_users: dict[str, str] | None) -> bool:
        return True

    def permissions(self, client_id: str, username: str | None) -> Permissions | None:
        return super().permissions(client_id, self._identity)

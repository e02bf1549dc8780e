"""Whether a client is let in, as whom, and what it may do: the methods of one listener, in their order.
Knows each method by its module; knows neither connections nor sessions, only what they ask.

A user of the password file is checked by it; else a password that has a token's form, by the token; else the
hook is asked. Who gives neither name nor password is anonymous, if the hook doesn't know better.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from midge.access import passwords
from midge.access.acl import Acl, ClientPermissions, Right, Rule, filled_in
from midge.access.attempts import FailedLogins
from midge.access.hook import Admit, Hook, Login, Verdict
from midge.access.scram import METHOD, Exchange
from midge.access.tokens import Proof, TokenError, Tokens, rules_of
from midge.core.access import ANYBODY, Answer, Authenticator, Identity, Permissions
from midge.logs import about
from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode

log = logging.getLogger("midge.access")

# Failed logins from one address in a minute. A board with a wrong password that dials again each second
# reaches it, and so can't lock out others behind the same address for longer than it misbehaves; a guesser
# gets 43,200 attempts a day. EMQX bans for 5 minutes after 15 in a minute; fail2ban after 5 in 10 minutes.
MAX_FAILED_LOGINS = 30

# Logins that wait for an answer at the same time. More are told to come again (0x89): what waits longer than
# the deadline for CONNECT would be hashed for nobody, and the boards that dial again would wait behind it.
_PENDING_MAX = 1000


@dataclass(frozen=True, slots=True)
class Basis:
    """Of an identity. *proof*: what the client was let in for: a password's hash, a token's Proof, a hook.
    *grants*: what it may do; None: as the ACL file says."""

    proof: str | Proof | Hook
    grants: tuple[Rule, ...] | None = None


@dataclass(slots=True)
class Desk:
    """What all listeners share."""

    executor: Executor  # hashes: never in the event loop's thread
    answered: Callable[[], None]  # called in the loop's thread after an answer that came later
    failed: FailedLogins = field(default_factory=lambda: FailedLogins(MAX_FAILED_LOGINS))
    pending: int = 0  # logins that wait for an answer


@dataclass(slots=True)
class Rules:
    """One listener's; a reload changes them."""

    users: dict[str, str] | None = None  # hash by user name; None: no password file
    acl: Acl | None = None
    tokens: Tokens | None = None
    hook: Hook | None = None

    def take_over(self, other: Rules) -> None:
        self.users, self.acl, self.tokens, self.hook = other.users, other.acl, other.tokens, other.hook

    @property
    def asks(self) -> bool:
        """Whether there is any way to show who one is."""
        return not (self.users is None and self.tokens is None and self.hook is None)


class ListenerAccess:
    """`midge.core.access.Access` of one listener."""

    def __init__(self, desk: Desk, rules: Rules, allow_anonymous: bool) -> None:
        self.desk = desk
        self.rules = rules
        self.allow_anonymous = allow_anonymous

    @property
    def is_open(self) -> bool:
        """Everybody is let in and may do everything: there is nothing to ask."""
        rules = self.rules  # not by `asks`: each new connection asks this
        is_asked = not (rules.users is None and rules.tokens is None and rules.hook is None)
        return self.allow_anonymous and not is_asked and rules.acl is None

    def connect(self, connect: Connect, address: str, answer: Answer) -> None:
        rules, name, password = self.rules, connect.username, connect.password
        gives_something = name is not None or password is not None
        if gives_something and rules.asks and self.desk.failed.is_refused(address, time.monotonic()):
            answer(ReasonCode.CONNECTION_RATE_EXCEEDED, ANYBODY)
        elif self.desk.pending >= _PENDING_MAX and rules.asks and (gives_something or rules.hook is not None):
            answer(ReasonCode.SERVER_BUSY, ANYBODY)
        elif rules.users is not None and name in rules.users:
            self._check_password(rules.users[name], connect, address, answer)
        elif rules.tokens is not None and password is not None and rules.tokens.is_token(password):
            self._check_token(rules.tokens, connect, address, answer)
        elif rules.hook is not None:
            self._ask_hook(rules.hook, connect, address, answer)
        else:
            self._check_nothing(connect, address, answer)

    def _check_nothing(self, connect: Connect, address: str, answer: Answer) -> None:
        """The client showed nothing that any of our methods knows."""
        rules, name = self.rules, connect.username
        if name is None or not (rules.users is not None or rules.tokens is not None):
            # Without a password file a name is only a name, as Mosquitto has it.
            is_allowed = self.allow_anonymous
            answer(ReasonCode.SUCCESS if is_allowed else ReasonCode.NOT_AUTHORIZED, Identity(name) if name else ANYBODY)
        elif rules.users:
            # Who asks for an unknown name waits as long as for a known one.
            self._check_password(None, connect, address, answer)
        else:
            self._refuse(address, answer)

    # -- answers that come later --

    def _later(self, work: asyncio.Future[Any], done: Callable[[asyncio.Future[Any]], None]) -> None:
        """Call *done* when *work* has ended, in the loop's thread, and have the turn ended."""
        self.desk.pending += 1

        def call(future: asyncio.Future[Any]) -> None:
            self.desk.pending -= 1
            if not future.cancelled():  # else the broker stops
                done(future)
                self.desk.answered()

        work.add_done_callback(call)

    def _refuse(self, address: str, answer: Answer) -> None:
        """A wrong password, or what amounts to one."""
        self.desk.failed.add(address, time.monotonic())
        answer(ReasonCode.BAD_USER_NAME_OR_PASSWORD, ANYBODY)

    def _check_password(self, stored: str | None, connect: Connect, address: str, answer: Answer) -> None:
        """*stored* None: there is no such user."""
        hashed = stored or next(iter((self.rules.users or {}).values()), "")
        is_right = asyncio.get_running_loop().run_in_executor(
            self.desk.executor, passwords.verify, hashed, connect.password or b""
        )
        is_possible = stored is not None and connect.password is not None

        def done(future: asyncio.Future[bool]) -> None:
            if self.desk.failed.is_refused(address, time.monotonic()):  # guesses side by side don't get past it
                answer(ReasonCode.CONNECTION_RATE_EXCEEDED, ANYBODY)
            elif is_possible and future.result():
                assert stored is not None
                answer(ReasonCode.SUCCESS, Identity(connect.username, None, Basis(stored)))
            else:
                self._refuse(address, answer)

        self._later(is_right, done)

    def _check_token(self, tokens: Tokens, connect: Connect, address: str, answer: Answer) -> None:
        assert connect.password is not None
        read = asyncio.get_running_loop().run_in_executor(
            self.desk.executor, tokens.read, connect.password, connect.client_id
        )

        def done(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            if isinstance(error, TokenError):
                log.info("a token that is not accepted: %s", error, extra=about(connect.client_id, address))
                self._refuse(address, answer)
                return
            token = future.result()
            basis = Basis(token.proof, token.grants)
            answer(ReasonCode.SUCCESS, Identity(token.username, token.expires_at, basis))

        self._later(read, done)

    def _ask_hook(self, hook: Hook, connect: Connect, address: str, answer: Answer) -> None:
        login = Login(connect.client_id, connect.username, connect.password, address, connect.level)

        def done(future: asyncio.Future[Verdict]) -> None:
            try:
                verdict = future.result()
                identity = _admitted_by(hook, verdict, connect) if verdict else None
            except Exception:
                log.exception("the auth hook %r failed", hook.name, extra=about(connect.client_id, address))
                answer(ReasonCode.SERVER_UNAVAILABLE, ANYBODY)
                return
            if identity is not None:
                answer(ReasonCode.SUCCESS, identity)
            elif verdict is None:
                self._check_nothing(connect, address, answer)
            else:
                self._refuse(address, answer)

        self._later(asyncio.wrap_future(hook.ask(login)), done)

    # -- enhanced authentication --

    def authenticator(self, method: str, address: str) -> Authenticator | None:
        users = self.rules.users
        if method != METHOD or not users or not any(stored.startswith(METHOD) for stored in users.values()):
            return None
        failed = self.desk.failed
        return Exchange(
            users,
            admit=lambda name, stored: Identity(name, None, Basis(stored)),
            failed=lambda: failed.add(address, time.monotonic()),
            is_refused=lambda: failed.is_refused(address, time.monotonic()),
        )

    # -- what follows --

    def still_admits(self, identity: Identity) -> bool:
        """After a reload: whether who was let in would be let in now."""
        rules = self.rules
        proof = identity.basis.proof if isinstance(identity.basis, Basis) else None
        if isinstance(proof, Proof):
            return rules.tokens is not None and rules.tokens.accepts(proof)
        if isinstance(proof, Hook):
            return rules.hook is not None and rules.hook.name == proof.name
        if rules.users is not None and identity.username is not None:
            return proof is not None and rules.users.get(identity.username) == proof
        return self.allow_anonymous and (identity.username is None or rules.tokens is None)

    def permissions(self, client_id: str, identity: Identity) -> Permissions | None:
        basis = identity.basis
        if isinstance(basis, Basis) and basis.grants is not None:
            return ClientPermissions(filled_in(basis.grants, client_id, identity.username), [])
        acl = self.rules.acl
        return None if acl is None else acl.permissions(client_id, identity.username)


def _admitted_by(hook: Hook, verdict: Admit | bool, connect: Connect) -> Identity:
    """TypeError, TokenError: the hook returned something else."""
    admit = Admit() if verdict is True else verdict
    if not isinstance(admit, Admit):
        raise TypeError(f"it returned {admit!r}: must be an Admit, True, False or None")
    grants = None
    if admit.publish is not None or admit.subscribe is not None:
        grants = (*rules_of(admit.publish or (), Right.WRITE), *rules_of(admit.subscribe or (), Right.READ))
    username = connect.username if admit.username is None else admit.username
    return Identity(username, admit.expires_at, Basis(hook, grants))


class CertificateAccess(ListenerAccess):
    """Of one connection: whose certificate names the user is let in, as that user. None: it names nobody."""

    def __init__(self, desk: Desk, rules: Rules, identity: str | None) -> None:
        super().__init__(desk, rules, allow_anonymous=False)
        self._identity = identity

    def connect(self, connect: Connect, address: str, answer: Answer) -> None:
        if self._identity is None:
            answer(ReasonCode.BAD_USER_NAME_OR_PASSWORD, ANYBODY)
        else:
            answer(ReasonCode.SUCCESS, Identity(self._identity))

    def authenticator(self, method: str, address: str) -> Authenticator | None:
        return None  # the certificate has said who it is

    def still_admits(self, identity: Identity) -> bool:
        return True

"""Which of a listener's methods decides, and what a reload makes of those who were let in."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jwt
import pytest

from midge.access import login
from midge.access.acl import Right, Rule
from midge.access.attempts import FailedLogins
from midge.access.hook import Admit, Hook, Login, Verdict
from midge.access.login import CertificateAccess, Desk, ListenerAccess, Rules
from midge.access.passwords import make_hash
from midge.access.tokens import TokenRules, Tokens
from midge.core.access import ANYBODY, Identity
from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode

SECRET = "0123456789abcdef0123456789abcdef"
USERS = {"anna": make_hash(b"a", "sha512"), "scram": make_hash(b"s", "scram-sha-256")}
REFUSED, NOT_AUTHORIZED = ReasonCode.BAD_USER_NAME_OR_PASSWORD, ReasonCode.NOT_AUTHORIZED


class FakeHook(Hook):
    """Answers at once with *verdict*, or raises it."""

    def __init__(self, verdict: Verdict | Exception, name: str = "fake") -> None:
        self.name = name
        self.asked: list[Login] = []
        self._verdict = verdict

    def ask(self, asked: Login) -> Future[Verdict]:
        self.asked.append(asked)
        future: Future[Verdict] = Future()
        if isinstance(self._verdict, Exception):
            future.set_exception(self._verdict)
        else:
            future.set_result(self._verdict)
        return future


def tokens(tmp_path: Path, secret: str = SECRET) -> Tokens:
    (tmp_path / "key").write_text(secret)
    return Tokens(TokenRules(tmp_path / "key", ("HS256",)))


def token(**claims: Any) -> bytes:
    return jwt.encode({"sub": "token", "exp": int(time.time()) + 60} | claims, SECRET, "HS256").encode()


def ask(
    rules: Rules,
    username: str | None = None,
    password: bytes | None = None,
    allow_anonymous: bool = False,
    failed: FailedLogins | None = None,
    address: str = "192.0.2.1:5",
) -> tuple[ReasonCode, Identity]:
    """What one listener answers to one CONNECT."""
    answers: list[tuple[ReasonCode, Identity]] = []
    turns: list[None] = []

    async def connect() -> None:
        with ThreadPoolExecutor(1) as executor:
            desk = Desk(executor, lambda: turns.append(None), failed or FailedLogins(0))
            access = ListenerAccess(desk, rules, allow_anonymous)
            packet = Connect("one", True, 60, 5, username=username, password=password)
            access.connect(packet, address, lambda reason, identity: answers.append((reason, identity)))
            waits = not answers
            while not answers:
                await asyncio.sleep(0.001)
            assert bool(turns) is waits and desk.pending == 0

    asyncio.run(connect())
    (answer,) = answers
    return answer


@pytest.mark.parametrize("allow", [True, False])
def test_who_shows_nothing_is_let_in_only_where_that_is_allowed(tmp_path: Path, allow: bool) -> None:
    expected = ReasonCode.SUCCESS if allow else NOT_AUTHORIZED
    for rules in (Rules(), Rules(users=USERS), Rules(tokens=tokens(tmp_path)), Rules(hook=FakeHook(None))):
        assert ask(rules, allow_anonymous=allow) == (expected, ANYBODY)
    # Without a password file a name is only a name.
    assert ask(Rules(), "anna", b"x", allow_anonymous=allow) == (expected, Identity("anna"))
    rules = Rules(hook=FakeHook(None))
    assert ask(rules, "anna", b"x", allow_anonymous=allow) == (expected, Identity("anna"))


@pytest.mark.parametrize("allow", [True, False])
def test_who_shows_something_wrong_is_never_let_in(tmp_path: Path, allow: bool) -> None:
    both = Rules(users=USERS, tokens=tokens(tmp_path))
    for rules, username, password in (
        (Rules(users=USERS), "anna", b"b"),
        (Rules(users=USERS), "anna", None),
        (Rules(users=USERS), "anna", b""),
        (Rules(users=USERS), "nobody", b"a"),
        (Rules(users=USERS), "nobody", None),
        (Rules(users={}), "anna", b"a"),
        (both, "nobody", b"a.b.c"),
        (both, "anna", token()),  # a user's own password decides
        (Rules(tokens=tokens(tmp_path)), "anna", b"a"),
        (Rules(tokens=tokens(tmp_path)), None, token()[:-4]),
        (Rules(hook=FakeHook(False)), "anna", b"a"),
        (Rules(hook=FakeHook(False)), None, None),
    ):
        assert ask(rules, username, password, allow) == (REFUSED, ANYBODY), (rules, username, password)


def test_each_method_lets_in_its_own(tmp_path: Path) -> None:
    fake = FakeHook(Admit("hooked", publish=["a/%c"], expires_at=5.0))
    rules = Rules(users=USERS, tokens=tokens(tmp_path), hook=fake)
    names = {}
    for username, password in (("anna", b"a"), ("scram", b"s"), ("x", token()), (None, token()), ("y", b"y")):
        reason, identity = ask(rules, username, password)
        assert reason == ReasonCode.SUCCESS
        names[username, password[:1]] = identity.username
    assert list(names.values()) == ["anna", "scram", "token", "token", "hooked"]
    assert [asked.username for asked in fake.asked] == ["y"]
    (asked,) = fake.asked
    assert asked == Login("one", "y", b"y", "192.0.2.1:5", 5)
    assert identity.expires_at == 5.0
    assert cast(login.Basis, identity.basis).grants == (Rule(Right.WRITE, "a/%c"),)


@pytest.mark.parametrize("verdict", [RuntimeError("down"), cast(Any, 5), Admit(publish=["a/#/b"])])
def test_a_hook_that_fails_lets_nobody_in_and_counts_no_failed_login(verdict: Any) -> None:
    failed = FailedLogins(1)
    for _ in range(3):
        rules = Rules(hook=FakeHook(verdict))
        assert ask(rules, "anna", b"a", True, failed) == (ReasonCode.SERVER_UNAVAILABLE, ANYBODY)


def test_every_method_counts_failures_and_past_the_limit_nobody_is_asked(tmp_path: Path) -> None:
    fake = FakeHook(False)
    for rules, password in (
        (Rules(users=USERS), b"x"),
        (Rules(tokens=tokens(tmp_path)), b"a.b.c"),
        (Rules(hook=fake), b"x"),
    ):
        failed = FailedLogins(2)
        reasons = [ask(rules, "anna", password, failed=failed)[0] for _ in range(3)]
        assert reasons == [REFUSED, REFUSED, ReasonCode.CONNECTION_RATE_EXCEEDED]
        assert ask(rules, "anna", b"a", failed=failed)[0] == ReasonCode.CONNECTION_RATE_EXCEEDED
        assert ask(rules, "anna", b"x", failed=failed, address="192.0.2.2:5")[0] == REFUSED
        assert ask(Rules(), allow_anonymous=True, failed=failed)[0] == ReasonCode.SUCCESS
    assert len(fake.asked) == 3


def test_when_too_many_wait_others_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_PENDING_MAX", 2)
    reasons: list[ReasonCode] = []

    async def storm() -> None:
        with ThreadPoolExecutor(1) as executor:
            desk = Desk(executor, lambda: None, FailedLogins(0))
            access = ListenerAccess(desk, Rules(users=USERS), allow_anonymous=True)
            for _ in range(5):
                packet = Connect("one", True, 60, 5, username="anna", password=b"a")
                access.connect(packet, "192.0.2.1:5", lambda reason, _: reasons.append(reason))
            access.connect(Connect("two", True, 60, 5), "192.0.2.1:5", lambda reason, _: reasons.append(reason))
            while len(reasons) < 6:
                await asyncio.sleep(0.001)

    asyncio.run(storm())
    assert reasons == [ReasonCode.SERVER_BUSY] * 3 + [ReasonCode.SUCCESS] * 3


def test_what_a_reload_makes_of_those_who_were_let_in(tmp_path: Path) -> None:
    keys, hook = tokens(tmp_path), FakeHook(True)
    everything = Rules(users=USERS, tokens=keys, hook=hook)
    anna, by_token, hooked = (ask(everything, *shown)[1] for shown in (("anna", b"a"), ("x", token()), ("y", b"y")))
    named = Identity("named")

    def admitted(rules: Rules, allow: bool = False) -> list[bool]:
        access = ListenerAccess(cast(Desk, None), rules, allow)
        return [access.still_admits(identity) for identity in (ANYBODY, named, anna, by_token, hooked)]

    assert admitted(everything) == [False, False, True, True, True]
    assert admitted(everything, True) == [True, False, True, True, True]
    assert admitted(Rules(), True) == [True, True, True, False, False]
    assert admitted(Rules(users=USERS)) == [False, False, True, False, False]
    assert admitted(Rules(users=USERS | {"anna": make_hash(b"new", "sha512")})) == [False] * 5
    assert admitted(Rules(tokens=tokens(tmp_path))) == [False, False, False, True, False]
    assert admitted(Rules(tokens=tokens(tmp_path, "x" * 32)), True) == [True, False, False, False, False]
    assert admitted(Rules(hook=FakeHook(False))) == [False, False, False, False, True]
    assert admitted(Rules(hook=FakeHook(True, "other"))) == [False] * 5


def test_scram_is_offered_only_where_a_user_has_it() -> None:
    desk = Desk(cast(Any, None), lambda: None)
    for users, is_offered in ((USERS, True), ({"anna": USERS["anna"]}, False), ({}, False), (None, False)):
        access = ListenerAccess(desk, Rules(users=users), True)
        assert (access.authenticator("SCRAM-SHA-256", "192.0.2.1:5") is not None) is is_offered
        assert access.authenticator("SCRAM-SHA-1", "192.0.2.1:5") is None
    assert CertificateAccess(desk, Rules(users=USERS), "anna").authenticator("SCRAM-SHA-256", "x") is None


def test_a_certificate_names_the_user_whatever_connect_says() -> None:
    answers: list[tuple[ReasonCode, Identity]] = []
    for name in ("anna", None):
        access = CertificateAccess(cast(Desk, None), Rules(users=USERS), name)
        packet = Connect("one", True, 60, 5, username="root", password=b"x")
        access.connect(packet, "192.0.2.1:5", lambda reason, identity: answers.append((reason, identity)))
    assert answers == [(ReasonCode.SUCCESS, Identity("anna")), (REFUSED, ANYBODY)]


def test_grants_are_filled_in_with_the_clients_names() -> None:
    desk = Desk(cast(Any, None), lambda: None)
    access = ListenerAccess(desk, Rules(), False)
    basis = login.Basis("x", (Rule(Right.READ, "from/%c/%u/#"), Rule(Right.WRITE, "to/%u")))
    allowed = access.permissions("one", Identity("anna", None, basis))
    assert allowed is not None
    assert allowed.may_subscribe("from/one/anna/#") and not allowed.may_subscribe("from/two/#")
    assert allowed.may_publish("to/anna") and not allowed.may_publish("from/one/anna/x")
    odd = access.permissions("#", Identity("+", None, basis))  # CVE-2017-7650
    assert odd is not None and not odd.may_publish("to/anna") and not odd.may_read("from/one/anna/x")
    assert access.permissions("one", Identity("anna")) is None

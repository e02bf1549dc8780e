"""SCRAM-SHA-256 against a client written from the RFCs: what a password file holds, and the exchange."""

from __future__ import annotations

import random
from base64 import b64decode, b64encode

import pytest

from midge.access.scram import ITERATIONS, Exchange, Verifier
from midge.core.access import Identity, Step
from midge.protocol.reasons import ReasonCode
from scram_peer import ScramClient

VERIFIER = str(Verifier.of(b"pencil"))


class Desk:
    """Counts failures, and refuses past one."""

    def __init__(self) -> None:
        self.failures = 0

    def exchange(self, users: dict[str, str] | None = None) -> Exchange:
        return Exchange(
            {"user": VERIFIER, "hashed": "$7$101$x$x"} if users is None else users,
            admit=lambda name, stored: Identity(name),
            failed=self.fail,
            is_refused=lambda: self.failures > 1,
        )

    def fail(self) -> None:
        self.failures += 1


def log_in(exchange: Exchange, client: ScramClient) -> Step:
    step = exchange.receive(client.first)
    assert step.reason == ReasonCode.CONTINUE_AUTHENTICATION and step.data is not None
    return exchange.receive(client.final(step.data))


def test_our_client_is_the_one_of_rfc_7677() -> None:
    client = ScramClient("user", "pencil", "rOprNGfwEbeRWgbNEkqO")
    assert client.first == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    server_first = (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert client.final(server_first).endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    assert client.is_signed(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


def test_a_verifier_is_read_as_it_was_written() -> None:
    made = Verifier.of(b"pencil", 4096, b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert str(made) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert Verifier.parse(str(made)) == made
    for broken in ("", "SCRAM-SHA-256$4096:$:", str(made)[:-1], str(made) + "x", str(made).replace("256", "1")):
        assert Verifier.parse(broken) is None


def test_who_knows_the_password_is_let_in_and_told_that_we_know_it_too() -> None:
    client = ScramClient("user", "pencil")
    step = log_in(Desk().exchange(), client)
    assert step.reason == ReasonCode.SUCCESS and step.identity == Identity("user")
    assert step.data is not None and client.is_signed(step.data)


def test_the_method_may_come_alone_at_first() -> None:
    exchange = Desk().exchange()
    assert exchange.receive(None) == Step(ReasonCode.CONTINUE_AUTHENTICATION)
    assert log_in(exchange, ScramClient("user", "pencil")).reason == ReasonCode.SUCCESS


@pytest.mark.parametrize(("user", "password"), [("user", "pen"), ("nobody", "pencil"), ("hashed", "pencil")])
def test_who_does_not_is_refused_and_counted(user: str, password: str) -> None:
    desk = Desk()
    step = log_in(desk.exchange(), ScramClient(user, password))
    assert step == Step(ReasonCode.BAD_USER_NAME_OR_PASSWORD)
    assert desk.failures == 1


def test_an_unknown_user_looks_like_a_known_one() -> None:
    answers = []
    for _ in range(2):
        step = Desk().exchange().receive(ScramClient("nobody", "x", "abc").first)
        assert step.data is not None
        fields = dict(part.split("=", 1) for part in step.data.decode().split(","))
        answers.append((fields["s"], fields["i"]))
    assert answers[0] == answers[1]  # the salt is the same at each try
    assert len(b64decode(answers[0][0])) == 16 and answers[0][1] == str(ITERATIONS)


@pytest.mark.parametrize("data", [b"", b"\xff", b"n,,", b"p=tls-unique,,n=user,r=x", b"n,a=root,n=user,r=x", b"x" * 9])
def test_what_is_no_scram_is_refused(data: bytes) -> None:
    desk = Desk()
    assert desk.exchange().receive(data).reason == ReasonCode.BAD_USER_NAME_OR_PASSWORD
    exchange = desk.exchange()
    exchange.receive(ScramClient("user", "pencil").first)
    assert exchange.receive(data).reason == ReasonCode.BAD_USER_NAME_OR_PASSWORD


def test_past_the_limit_of_failures_nobody_is_let_in() -> None:
    desk = Desk()
    desk.failures = 2
    step = desk.exchange().receive(ScramClient("user", "pencil").first)
    assert step == Step(ReasonCode.CONNECTION_RATE_EXCEEDED)


def test_damaged_messages_are_refused_and_nothing_worse() -> None:
    seed = 20_261_125
    print("seed", seed)
    dice = random.Random(seed)
    for number in range(3000):
        exchange, client = Desk().exchange(), ScramClient("user", "pencil")
        message = client.first
        if number % 2:
            step = exchange.receive(message)
            assert step.data is not None
            message = b"c=biws," + step.data.partition(b",")[0] + b",p=" + b64encode(bytes(32))
        damaged = damage(message, dice)
        reason = exchange.receive(damaged).reason
        refused = ReasonCode.BAD_USER_NAME_OR_PASSWORD
        assert reason == refused if number % 2 else reason in (refused, ReasonCode.CONTINUE_AUTHENTICATION), damaged


def damage(message: bytes, dice: random.Random) -> bytes:
    """Bytes changed, lost and added, parts in another order."""
    text = bytearray(message)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(text)) if text else 0
        kind = dice.randrange(5)
        if kind == 0 and text:
            text[at] = dice.randrange(256)
        elif kind == 1:
            del text[at : at + 1]
        elif kind == 2:
            text.insert(at, dice.choice(b",=acnrpsiv\x00\xff\xc3"))
        elif kind == 3:
            del text[at:]
        else:
            parts = bytes(text).split(b",")
            dice.shuffle(parts)
            text = bytearray(b",".join(parts[: dice.randint(1, len(parts))]))
    return bytes(text)

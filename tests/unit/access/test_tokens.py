"""Tokens: which are genuine, who they name, which topics they allow, and what attackers make of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from midge.access.acl import Right, Rule
from midge.access.errors import AccessFileError
from midge.access.tokens import TokenError, TokenRules, Tokens

SECRET = b"0123456789abcdef0123456789abcdef"
RSA, OTHER_RSA = (rsa.generate_private_key(65_537, 2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def tokens(tmp_path: Path, data: bytes, *algorithms: str, **rules: Any) -> Tokens:
    path = tmp_path / "keys"
    path.write_bytes(data)
    return Tokens(TokenRules(path, algorithms, **rules))


def token(key: Any, algorithm: str, headers: dict[str, Any] | None = None, **claims: Any) -> bytes:
    payload = {"sub": "anna", "exp": int(time.time()) + 60} | claims
    return jwt.encode({k: v for k, v in payload.items() if v is not None}, key, algorithm, headers).encode()


def refusal(keys: Tokens, text: bytes, client_id: str = "one") -> str:
    with pytest.raises(TokenError) as caught:
        keys.read(text, client_id)
    return str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "key", "stored"),
    [("HS256", SECRET, SECRET + b"\n"), ("RS256", RSA, public(RSA)), ("PS512", RSA, public(RSA)),
     ("ES256", EC, public(EC)), ("EdDSA", ED, public(ED))],
    ids=["HS256", "RS256", "PS512", "ES256", "EdDSA"],
)  # fmt: skip
def test_a_genuine_token_names_its_user_and_its_end(tmp_path: Path, algorithm: str, key: Any, stored: bytes) -> None:
    keys = tokens(tmp_path, stored, algorithm)
    until = int(time.time()) + 100
    text = token(key, algorithm, exp=until)
    assert Tokens.is_token(text)
    found = keys.read(text, "one")
    assert (found.username, found.expires_at, found.grants) == ("anna", until, None)
    assert keys.accepts(found.proof)
    assert not tokens(tmp_path, public(OTHER_RSA), "RS256").accepts(found.proof)


def test_its_topics_become_rules(tmp_path: Path) -> None:
    keys = tokens(tmp_path, SECRET, "HS256")
    claim = {"pub": ["a/${clientid}", "b/+"], "sub": ["c/%u/#"], "all": ["d"]}
    assert keys.read(token(SECRET, "HS256", acl=claim), "one").grants == (
        Rule(Right.WRITE, "a/%c"), Rule(Right.WRITE, "b/+"), Rule(Right.READ, "c/%u/#"), Rule(Right.READWRITE, "d"),
    )  # fmt: skip
    assert keys.read(token(SECRET, "HS256", acl={}), "one").grants == ()  # nothing at all
    for wrong in (["a"], {"publish": ["a"]}, {"pub": "a"}, {"pub": [1]}, {"pub": ["a/#/b"]}, "a"):
        assert "topic" in refusal(keys, token(SECRET, "HS256", acl=wrong))


def test_claims_that_are_asked_for(tmp_path: Path) -> None:
    keys = tokens(
        tmp_path, SECRET, "HS256", issuer="us", audience="mqtt", username_claim="name", client_id_claim="cid"
    )
    good = {"iss": "us", "aud": ["web", "mqtt"], "name": "anna", "cid": "one", "sub": None}
    assert keys.read(token(SECRET, "HS256", **good), "one").username == "anna"
    for change in ({"iss": "them"}, {"iss": None}, {"aud": "web"}, {"aud": None}, {"name": None}, {"name": 5},
                   {"name": ""}, {"cid": None}, {"cid": "two"}):  # fmt: skip
        assert refusal(keys, token(SECRET, "HS256", **good | change))
    assert "client identifier" in refusal(keys, token(SECRET, "HS256", **good), "two")


def test_a_token_outside_its_time_is_refused(tmp_path: Path) -> None:
    keys, now = tokens(tmp_path, SECRET, "HS256"), int(time.time())
    for claims in ({"exp": now - 1}, {"exp": now - 1000}, {"exp": None}, {"nbf": now + 100}, {"exp": "soon"},
                   {"exp": 10**400}, {"exp": float("inf")}, {"exp": float("nan")}):  # fmt: skip
        assert refusal(keys, token(SECRET, "HS256", **claims))


def part(data: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=")


def test_forgeries(tmp_path: Path) -> None:
    keys = tokens(tmp_path, public(RSA), "RS256")
    claims = part({"sub": "root", "exp": int(time.time()) + 60})
    unsigned = part({"alg": "none", "typ": "JWT"}) + b"." + claims + b"."  # CVE-2015-9235
    assert Tokens.is_token(unsigned)
    assert refusal(keys, unsigned)
    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + claims  # CVE-2016-10555: the public key as secret
    mac = base64.urlsafe_b64encode(hmac.digest(public(RSA), signed, hashlib.sha256)).rstrip(b"=")
    assert refusal(keys, signed + b"." + mac)
    assert refusal(keys, token(OTHER_RSA, "RS256"))
    assert refusal(keys, token(RSA, "RS512"))  # an algorithm that isn't allowed
    head, _, signature = token(RSA, "RS256").split(b".")
    assert refusal(keys, b".".join((head, claims, signature)))
    assert refusal(keys, token(OTHER_RSA, "RS256", {"jwk": {"kty": "oct", "k": "eA"}}))
    for text in (b"a.b.c", b"..", b"x" * 100, b"\xff.\xff.\xff", head + b"." + head + b"."):
        if Tokens.is_token(text):
            assert refusal(keys, text)


def test_a_password_does_not_look_like_a_token() -> None:
    for password in (None, b"", b"secret", b"a.b", b"a.b.c.d", b"a b.c.d", b".b.c", b"a..c"):
        assert not Tokens.is_token(password)


def test_several_keys_while_they_are_replaced(tmp_path: Path) -> None:
    keys = tokens(tmp_path, public(RSA) + public(OTHER_RSA) + public(EC), "RS256", "ES256")
    for key, algorithm in ((RSA, "RS256"), (OTHER_RSA, "RS256"), (EC, "ES256")):
        assert keys.read(token(key, algorithm), "one").username == "anna"


def test_a_key_set_chooses_by_key_identifier(tmp_path: Path) -> None:
    items = []
    for number, key in enumerate((RSA, OTHER_RSA)):
        item = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        items.append(item | {"kid": f"k{number}", "alg": "RS256", "use": "sig"})
    items.append(json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ED.public_key())))
    keys = tokens(tmp_path, json.dumps({"keys": items}).encode(), "RS256", "EdDSA")
    assert keys.read(token(OTHER_RSA, "RS256", {"kid": "k1"}), "one")
    assert keys.read(token(OTHER_RSA, "RS256"), "one")
    assert keys.read(token(ED, "EdDSA"), "one")
    assert refusal(keys, token(OTHER_RSA, "RS256", {"kid": "k0"}))
    assert refusal(keys, token(RSA, "RS256", {"kid": "k9"}))
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).decode().rstrip("=")}
    assert tokens(tmp_path, json.dumps(secret).encode(), "HS256").read(token(SECRET, "HS256"), "one")


@pytest.mark.parametrize(
    ("data", "algorithm", "message"),
    [
        (b"short\n", "HS256", "less than 32 bytes"),
        (public(RSA), "HS256", "no key in it fits HS256"),
        (public(EC), "RS256", "no key in it fits RS256"),
        (SECRET, "RS256", "no key in it fits RS256"),
        (b"", "RS256", "no key"),
        (b"{", "RS256", "not JSON"),
        (b'{"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}', "HS256", "less than 32 bytes"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "RS256", "no key"),
        (RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "RS256", "a private key"),
        (jwt.algorithms.RSAAlgorithm.to_jwk(RSA).encode(), "RS256", "a private key"),
    ],
)
def test_a_key_file_that_can_not_be_used(tmp_path: Path, data: bytes, algorithm: str, message: str) -> None:
    with pytest.raises(AccessFileError, match=message) as caught:
        tokens(tmp_path, data, algorithm)
    assert str(tmp_path / "keys") in str(caught.value)

"""JSON Web Tokens as passwords: whether one is genuine, who it names, and which topics it allows.
Knows keys and claims, no connection; signatures are PyJWT's work.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.access.acl import Right, Rule
from midge.access.errors import AccessFileError
from midge.protocol.errors import ProtocolError
from midge.protocol.topics import check_topic_filter

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

# What [access.jwt] may allow; "none" is not among them (CVE-2015-9235).
ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)

# s by which the issuer's clock may differ from ours, for "not before" and "issued at"; a token is never taken
# longer than it says.
_LEEWAY_S = 10

# A shorter secret can be guessed from one token (RFC 7518 §3.2 asks for the hash's length).
_SECRET_BYTES_MIN = 32

_TOKEN = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]*")
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)


class TokenError(Exception):
    """A token that lets nobody in; the message says why."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """`[access.jwt]`"""

    key_file: Path
    algorithms: tuple[str, ...]
    issuer: str | None = None
    audience: str | None = None
    username_claim: str = "sub"
    client_id_claim: str | None = None
    topics_claim: str = "acl"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a token was checked against; a reload asks whether it would still do."""

    key: str  # fingerprint
    rules: TokenRules


@dataclass(frozen=True, slots=True)
class Token:
    """What a genuine one says. *grants* None: nothing about topics."""

    username: str
    expires_at: float  # s since the epoch
    proof: Proof
    grants: tuple[Rule, ...] | None


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    key: Any  # as PyJWT's algorithm wants it
    key_id: str | None
    fingerprint: str


class Tokens:
    """The keys of one file, and what a token must say. AccessFileError: the file can't be used."""

    def __init__(self, rules: TokenRules) -> None:
        self.rules = rules
        self._keys = _load_keys(rules)
        self._fingerprints = {key.fingerprint for key in self._keys}

    @staticmethod
    def is_token(password: bytes | None) -> bool:
        """Whether *password* has a token's form."""
        return password is not None and _TOKEN.fullmatch(password) is not None

    def accepts(self, proof: Proof) -> bool:
        return proof.key in self._fingerprints and proof.rules == self.rules

    def read(self, token: bytes, client_id: str) -> Token:
        """Check signature and claims; takes a fraction of a millisecond, with RSA or ECDSA. TokenError: it
        lets nobody in."""
        claims, key = self._verify(token)
        rules = self.rules
        username = claims.get(rules.username_claim)
        if not isinstance(username, str) or not username:
            raise TokenError(f"no user name in the claim {rules.username_claim!r}")
        if rules.client_id_claim is not None and claims.get(rules.client_id_claim) != client_id:
            raise TokenError(f"its claim {rules.client_id_claim!r} is not the client identifier")
        try:
            expires_at = float(claims["exp"])
        except OverflowError:
            raise TokenError("its end is no time") from None
        if not time.time() < expires_at < math.inf:
            raise TokenError("it has expired")
        grants = _grants(claims[rules.topics_claim]) if rules.topics_claim in claims else None
        return Token(username, expires_at, Proof(key.fingerprint, rules), grants)

    def _verify(self, token: bytes) -> tuple[dict[str, Any], _Key]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            keys = [key for key in self._keys if key.algorithm == header.get("alg")]
            if (key_id := header.get("kid")) is not None:
                keys = [key for key in keys if key.key_id in (None, key_id)]
            for key in keys:
                try:
                    claims = jwt.decode(
                        token,
                        key.key,
                        algorithms=[key.algorithm],
                        issuer=self.rules.issuer,
                        audience=self.rules.audience,
                        leeway=_LEEWAY_S,
                        # An audience that we don't ask for isn't checked; a token without end is refused.
                        options={"require": ["exp"], "verify_aud": self.rules.audience is not None},
                    )
                except jwt.InvalidSignatureError:
                    continue
                return claims, key
        except jwt.PyJWTError as error:
            raise TokenError(str(error)) from None
        raise TokenError("none of our keys and algorithms fits its signature")


def _grants(claim: Any) -> tuple[Rule, ...]:
    """`{"pub": [...], "sub": [...], "all": [...]}`, as EMQX has it; %c and %u stand for the client's names."""
    rights = {"pub": Right.WRITE, "sub": Right.READ, "all": Right.READWRITE}
    if not isinstance(claim, dict) or not set(claim) <= set(rights):
        raise TokenError("its topics are not lists under pub, sub and all")
    found = []
    for name, filters in claim.items():
        if not isinstance(filters, list):
            raise TokenError("its topics are not lists under pub, sub and all")
        found += rules_of(filters, rights[name])
    return tuple(found)


def rules_of(filters: Sequence[Any], right: Right) -> list[Rule]:
    """TokenError: one of *filters* isn't a topic filter."""
    found = []
    for topic_filter in filters:
        try:
            if not isinstance(topic_filter, str):
                raise TokenError(f"{topic_filter!r} is not a topic filter")
            check_topic_filter(topic_filter)
        except ProtocolError as error:
            raise TokenError(f"{topic_filter!r} is not a topic filter: {error.message}") from None
        text = topic_filter.replace("${clientid}", "%c").replace("${username}", "%u")
        found.append(Rule(right, text))
    return found


# -- keys --


def _load_keys(rules: TokenRules) -> list[_Key]:
    from jwt.algorithms import get_default_algorithms

    path = rules.key_file
    try:
        data = path.read_bytes().strip()
    except OSError as error:
        raise AccessFileError(f"key file {path}: {error.strerror}") from None
    known = get_default_algorithms()
    algorithms = {name: known[name] for name in rules.algorithms}
    if data.startswith(b"{"):
        keys = _from_jwks(data, algorithms, path)
    elif data.startswith(b"-----BEGIN"):
        keys = _from_pem(data, algorithms, path)
    else:
        keys = _from_secret(data, algorithms, path)
    if not keys:
        raise AccessFileError(f"key file {path}: no key in it fits {', '.join(rules.algorithms)}")
    return keys


def _key(algorithm: str, key: Any, key_id: str | None, source: bytes) -> _Key:
    return _Key(algorithm, key, key_id, hashlib.sha256(algorithm.encode() + source).hexdigest())


def _from_pem(data: bytes, algorithms: dict[str, Algorithm], path: Path) -> list[_Key]:
    """Public keys, one or several while they are being replaced."""
    from jwt import InvalidKeyError

    keys = []
    for match in _PEM.finditer(data):
        if b"PRIVATE" in match[1]:
            raise AccessFileError(f"key file {path}: a private key; the broker needs the public one")
        for name, algorithm in algorithms.items():
            if name.startswith("HS"):
                continue  # a public key as secret would let everybody sign (CVE-2016-10555)
            try:
                keys.append(_key(name, algorithm.prepare_key(match[0]), None, match[0]))
            except (InvalidKeyError, TypeError, ValueError):
                continue  # of another kind
    return keys


def _from_jwks(data: bytes, algorithms: dict[str, Algorithm], path: Path) -> list[_Key]:
    """A JSON Web Key, or a set of them (RFC 7517). Each is used with the algorithm that it names, or with any
    of its kind."""
    from jwt import InvalidKeyError

    try:
        parsed = json.loads(data)
        items = parsed.get("keys", [parsed])
    except (ValueError, TypeError) as error:
        raise AccessFileError(f"key file {path}: not JSON: {error}") from None
    keys = []
    for item in items:
        if not isinstance(item, dict) or item.get("use", "sig") != "sig":
            continue
        source = json.dumps({name: value for name, value in item.items() if name != "alg"}, sort_keys=True)
        for name, algorithm in algorithms.items():
            if item.get("alg", name) != name or (name.startswith("HS") is not (item.get("kty") == "oct")):
                continue
            try:
                key = algorithm.from_jwk(item)
            except (InvalidKeyError, TypeError, ValueError, KeyError):
                continue  # of another kind
            if name.startswith("HS"):
                _check_secret(key, path)
            elif "d" in item:
                raise AccessFileError(f"key file {path}: a private key; the broker needs the public one")
            keys.append(_key(name, key, item.get("kid"), source.encode()))
    return keys


def _from_secret(data: bytes, algorithms: dict[str, Algorithm], path: Path) -> list[_Key]:
    names = [name for name in algorithms if name.startswith("HS")]
    if names:
        _check_secret(data, path)
    return [_key(name, data, None, data) for name in names]


def _check_secret(secret: Any, path: Path) -> None:
    if len(secret) < _SECRET_BYTES_MIN:
        raise AccessFileError(f"key file {path}: a secret of less than {_SECRET_BYTES_MIN} bytes can be guessed")

"""SCRAM-SHA-256 (RFC 5802, RFC 7677): what a password file holds of a user, and the broker's half of the exchange.
Knows no connection; the messages are scramp's work.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from midge.core.access import Identity, Step
from midge.protocol.reasons import ReasonCode

METHOD = "SCRAM-SHA-256"  # the Authentication Method of CONNECT, by SASL's name for it

# As RFC 7677 §4 asks at least, and as PostgreSQL does it: it is the client that must count them, and a board
# needs seconds for as many.
ITERATIONS = 4096

_SALT_BYTES = 16
# PostgreSQL's form of it (pg_authid.rolpassword).
_FORM = re.compile(r"SCRAM-SHA-256\$(\d{1,8}):([A-Za-z0-9+/]+=*)\$([A-Za-z0-9+/]{43}=):([A-Za-z0-9+/]{43}=)")


@dataclass(frozen=True, slots=True)
class Verifier:
    """What stands for a password: it can check one, but whoever reads it can't log in with it."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __str__(self) -> str:
        salt, stored, server = (b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key))
        return f"{METHOD}${self.iterations}:{salt}${stored}:{server}"

    @classmethod
    def parse(cls, text: str) -> Verifier | None:
        """None: it isn't one."""
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        try:
            return cls(int(match[1]), b64decode(match[2]), b64decode(match[3]), b64decode(match[4]))
        except ValueError:
            return None

    @classmethod
    def of(cls, password: bytes, iterations: int = ITERATIONS, salt: bytes = b"") -> Verifier:
        """ValueError: *password* has characters that SASLprep (RFC 4013) doesn't allow."""
        salt = salt or secrets.token_bytes(_SALT_BYTES)
        salted = hashlib.pbkdf2_hmac("sha256", _prepared(password), salt, iterations)
        stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        return cls(iterations, salt, stored_key, hmac.digest(salted, b"Server Key", "sha256"))

    def verify(self, password: bytes) -> bool:
        """A password that came as such, in CONNECT. Takes milliseconds. ValueError: as `of`."""
        made = Verifier.of(password, self.iterations, self.salt)
        return hmac.compare_digest(made.stored_key, self.stored_key)


def _prepared(password: bytes) -> bytes:
    from scramp.utils import ScramException, saslprep  # type: ignore[import-untyped]

    try:
        return str(saslprep(password.decode())).encode()
    except ScramException as error:
        raise ValueError(str(error)) from None


# What an unknown user's salt is made of: the same at each try, so that it doesn't tell that there is no such user.
_SECRET = secrets.token_bytes(32)


class Exchange:
    """`midge.core.access.Authenticator`, for one exchange. *users* are the password file's lines by name;
    *admit* makes the identity of who has shown to know the password; *failed* and *is_refused* count failures."""

    def __init__(
        self,
        users: Mapping[str, str],
        admit: Callable[[str, str], Identity],
        failed: Callable[[], None],
        is_refused: Callable[[], bool],
    ) -> None:
        from scramp import ScramMechanism  # type: ignore[import-untyped]

        self._users = users
        self._admit = admit
        self._failed = failed
        self._is_refused = is_refused
        self._user = ""
        self._is_known = False
        self._has_first = False
        self._server = ScramMechanism(METHOD).make_server(self._find)

    def receive(self, data: bytes | None) -> Step:
        from scramp import ScramException

        if self._is_refused():
            return Step(ReasonCode.CONNECTION_RATE_EXCEEDED)
        if data is None and not self._has_first:
            return Step(ReasonCode.CONTINUE_AUTHENTICATION)  # CONNECT or AUTH only named the method
        try:
            text = (data or b"").decode()
            if not self._has_first:
                self._has_first = True
                self._server.set_client_first(text)
                return Step(ReasonCode.CONTINUE_AUTHENTICATION, self._server.get_server_first().encode())
            self._server.set_client_final(text)
        except (ScramException, UnicodeDecodeError):
            return self._refuse()
        if not self._is_known:
            return self._refuse()
        final = self._server.get_server_final().encode()
        return Step(ReasonCode.SUCCESS, final, self._admit(self._user, self._users[self._user]))

    def _refuse(self) -> Step:
        self._failed()
        return Step(ReasonCode.BAD_USER_NAME_OR_PASSWORD)

    def _find(self, user: object) -> tuple[bytes, bytes, bytes, int]:
        """Salt, stored key, server key, iterations: as scramp asks for them."""
        self._user = str(user)
        verifier = Verifier.parse(self._users.get(self._user, ""))
        self._is_known = verifier is not None
        if verifier is None:
            made = hmac.digest(_SECRET, self._user.encode(), "sha512")
            verifier = Verifier(ITERATIONS, made[:_SALT_BYTES], made[-32:], made[-32:])
        return verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations

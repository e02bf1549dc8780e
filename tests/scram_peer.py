"""A client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), written from the RFCs' formulas alone.

Knows no MQTT and nothing of the broker's half; `test_scram.py` holds it to RFC 7677's example.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode


class ScramClient:
    """`first`, then `final(server_first)`, then `is_signed(server_final)`."""

    def __init__(self, user: str, password: str, nonce: str = "") -> None:
        self._password = password.encode()
        self._bare = f"n={user},r={nonce or secrets.token_hex(12)}"
        self.first = f"n,,{self._bare}".encode()

    def final(self, server_first: bytes) -> bytes:
        first = server_first.decode()
        fields = dict(part.split("=", 1) for part in first.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", self._password, b64decode(fields["s"]), int(fields["i"]))
        without_proof = f"c={b64encode(b'n,,').decode()},r={fields['r']}"
        message = f"{self._bare},{first},{without_proof}".encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self._expected = b"v=" + b64encode(hmac.digest(server_key, message, "sha256"))
        return f"{without_proof},p={b64encode(proof).decode()}".encode()

    def is_signed(self, server_final: bytes) -> bool:
        """Whether the server has shown that it knows the user too."""
        return hmac.compare_digest(server_final, self._expected)

"""The keys of who may connect, publish and subscribe: `[access]`, and what a listener may have of its own.
Knows what each means, no file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from midge.access import MAX_FAILED_LOGINS
from midge.config.section import Section, key

# As midge.access.tokens has them; written out, since a type must be.
_Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip


class JwtSection(Section):
    """JSON Web Tokens that clients give as their password."""

    key_file: str = key(
        ...,
        "What their signatures are checked with: public keys (PEM), a JSON Web Key Set, or a shared secret, relative "
        "to this file.",
        example="jwt.pem",
    )
    algorithms: list[_Algorithm] = key(
        ..., 'Those that may sign, such as "RS256", "ES256", "EdDSA" or "HS256".', example=["RS256"], min_length=1
    )
    issuer: str | None = key(None, 'What the claim "iss" must be.', example="https://login.example.org")
    audience: str | None = key(None, 'What the claim "aud" must have.', example="mqtt")
    username_claim: str = key("sub", "The claim that is the user name; CONNECT's user name counts for nothing.")
    client_id_claim: str | None = key(
        None, "The claim that must be the client identifier; not set: any will do.", example="client_id"
    )
    topics_claim: str = key(
        "acl",
        'The claim with the topics: { "pub": [FILTER, ...], "sub": [...], "all": [...] }, with %c and %u as in an '
        "ACL file. In a token without it, acl_file says what the client may do.",
    )

    @model_validator(mode="after")
    def _signers_are_of_one_kind(self) -> JwtSection:
        if len({name.startswith("HS") for name in self.algorithms}) > 1:
            raise ValueError("a shared secret (HS...) and public keys can't be in one key_file")
        return self


class AccessSection(Section):
    """Who may connect, publish and subscribe. The files are Mosquitto's, as they are."""

    allow_anonymous: bool | None = key(
        None,
        "Let clients in without a user name; not set: if nothing below says who they are, on listeners that only "
        "this machine can reach.",
        example=False,
    )
    password_file: str | None = key(
        None,
        "Users and their hashed passwords (midge passwd writes it), relative to this file.",
        example="passwd",
    )
    acl_file: str | None = key(
        None, "Who may do what with which topics, relative to this file.", example="acl"
    )
    jwt: JwtSection | None = key(
        None,
        "JSON Web Tokens that clients give as their password.",
        example={"key_file": "jwt.pem", "algorithms": ["RS256"]},
    )
    auth_hook: str | None = key(
        None,
        'A function of an installed package that decides: its name in the entry point group "midge.auth".',
        example="ldap",
    )
    max_failed_logins: int = key(
        MAX_FAILED_LOGINS,
        "Failed logins from one address in a minute; then logins from there are refused for the rest of it. "
        "0: no limit.",
        ge=0,
    )

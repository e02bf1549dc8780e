"""Mosquitto's password files: read, check, write; a SCRAM verifier may stand in place of a hash.
Knows users and hashes, not who asks.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path

from midge.access.errors import AccessFileError
from midge.access.scram import ITERATIONS, Verifier

log = logging.getLogger("midge.access")

# Rounds of PBKDF2 for the hashes that we make. mosquitto_passwd: 101 (2.0), 1,000 (2.1); OWASP asks for
# 210,000 where a person logs in and waits. Here a fleet logs in at once after a power cut, and Mosquitto,
# which reads the same file, hashes in its only thread: 10,000 are 5 ms on a laptop.
PBKDF2_ITERATIONS = 10_000

_SALT_BYTES = 12  # as mosquitto_passwd
_PBKDF2 = re.compile(r"\$7\$(\d{1,9})\$([^$]+)\$([^$]+)")
_SHA512 = re.compile(r"\$6\$([^$]+)\$([^$]+)")

# With the last a user can also log in by SCRAM-SHA-256, without showing the password. Mosquitto skips such lines.
HASHES = ("sha512-pbkdf2", "sha512", "argon2id", "scram-sha-256")


def verify(stored: str, password: bytes) -> bool:
    """Whether *password* is the one that *stored* was made of. Takes milliseconds; False for a hash of
    unknown kind."""
    try:
        if match := _PBKDF2.fullmatch(stored):
            salt, expected = b64decode(match[2]), b64decode(match[3])
            made = hashlib.pbkdf2_hmac("sha512", password, salt, int(match[1]))
        elif match := _SHA512.fullmatch(stored):
            salt, expected = b64decode(match[1]), b64decode(match[2])
            made = hashlib.sha512(password + salt).digest()
        elif stored.startswith("$argon2id$"):
            return _verify_argon2(stored, password)
        elif verifier := Verifier.parse(stored):
            return verifier.verify(password)
        else:
            return False
    except (Base64Error, ValueError):
        return False
    return hmac.compare_digest(made, expected)


def _verify_argon2(stored: str, password: bytes) -> bool:
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        return PasswordHasher().verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return False


def is_known(stored: str) -> bool:
    """Whether *stored* has the form of a hash that `verify` can check."""
    return bool(
        _PBKDF2.fullmatch(stored)
        or _SHA512.fullmatch(stored)
        or re.match(r"\$argon2id\$v=\d+\$", stored)
        or Verifier.parse(stored)
    )


def default_iterations(kind: str) -> int:
    return ITERATIONS if kind == "scram-sha-256" else PBKDF2_ITERATIONS


def make_hash(password: bytes, kind: str = "sha512-pbkdf2", iterations: int = 0) -> str:
    """What stands for *password* in a file; *kind* is one of HASHES; *iterations* 0: as many as is usual.
    ValueError: SCRAM doesn't allow such a password."""
    iterations = iterations or default_iterations(kind)
    if kind == "scram-sha-256":
        return str(Verifier.of(password, iterations))
    if kind == "argon2id":
        from argon2 import PasswordHasher

        return PasswordHasher().hash(password)
    salt = secrets.token_bytes(_SALT_BYTES)
    encoded = b64encode(salt).decode()
    if kind == "sha512":
        return f"$6${encoded}${b64encode(hashlib.sha512(password + salt).digest()).decode()}"
    made = hashlib.pbkdf2_hmac("sha512", password, salt, iterations)
    return f"$7${iterations}${encoded}${b64encode(made).decode()}"


def load(path: Path) -> dict[str, str]:
    """The hashes by user name. AccessFileError: the file can't be read.

    As Mosquitto has it, a line that can't be used is skipped and its user can't log in; we say so.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(_read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, stored = (part.strip() for part in line.partition(":"))
        if not (colon and name and is_known(stored)):
            log.warning("%s:%d: not NAME:HASH with a hash of a kind that is known; skipped", path, number)
            continue
        users.setdefault(name, stored)  # Mosquitto takes the first of two as well
    return users


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AccessFileError(f"password file {path}: {reason}") from None
    # Not splitlines(): a name may hold characters that it takes for line breaks.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def set_password(path: Path, user: str, stored: str, create: bool = False) -> bool:
    """Add *user*, or replace the hash; True if it is a new one. *create*: start with an empty file."""
    lines = [] if create else _read_lines(path)
    entry = f"{user}:{stored}"
    places = [place for place, line in enumerate(lines) if line.split(":", 1)[0] == user]
    for place in places:
        lines[place] = entry
    _write(path, [*lines, entry] if not places else lines)
    return not places


def remove_user(path: Path, user: str) -> bool:
    """False if the file has no such user."""
    lines = _read_lines(path)
    kept = [line for line in lines if line.split(":", 1)[0] != user]
    if len(kept) == len(lines):
        return False
    _write(path, kept)
    return True


def hash_plain(path: Path, kind: str, iterations: int) -> int:
    """Replace the plain passwords of a file by hashes; how many. Those already hashed stay as they are."""
    lines = _read_lines(path)
    changed = 0
    for place, line in enumerate(lines):
        name, colon, password = line.partition(":")
        if colon and password and not line.startswith("#") and not is_known(password):
            lines[place] = f"{name}:{make_hash(password.encode(), kind, iterations)}"
            changed += 1
    _write(path, lines)
    return changed


def _write(path: Path, lines: list[str]) -> None:
    """All or nothing: a broker that reloads meanwhile must not see half a file."""
    path = path.resolve()  # the file itself, where the name is a link
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
            if os.geteuid() == 0:
                shutil.chown(temporary, path.stat().st_uid, path.stat().st_gid)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise AccessFileError(f"password file {path}: {error.strerror}") from None

"""`midge passwd`: manage a password file, with the options of `mosquitto_passwd`.
Knows options and how to ask for a password; the file is `midge.access.passwords`'.
"""

from __future__ import annotations

import argparse
import sys
from getpass import getpass
from pathlib import Path

from midge.access import passwords
from midge.access.errors import AccessFileError
from midge.access.scram import ITERATIONS

# What CONNECT can hold (MQTT 5.0 §1.5.4).
_USERNAME_BYTES_MAX = 65_535

_EXAMPLES = """\
examples:
  midge passwd -c passwd anna          a new file with one user; asks for the password
  midge passwd passwd board            add a user, or change the password
  midge passwd -b passwd board secret  the same without asking (others may see the command line)
  midge passwd -H scram-sha-256 passwd anna   a user who may also log in by SCRAM-SHA-256 (MQTT 5.0's AUTH)
  midge passwd -D passwd anna          remove a user

Then: [access] password_file = "passwd" in the broker's configuration, and SIGHUP to a running broker.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge passwd",
        description="Manage a password file of midge or Mosquitto.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-c", dest="create", action="store_true", help="start a new file, also over an old one")
    what.add_argument("-D", dest="delete", action="store_true", help="remove the user")
    what.add_argument("-U", dest="upgrade", action="store_true", help="hash the plain passwords of a file")
    parser.add_argument("-b", dest="batch", action="store_true", help="take PASSWORD from the command line")
    parser.add_argument("-H", dest="hash", choices=passwords.HASHES, default=passwords.HASHES[0])
    parser.add_argument(
        "-I",
        dest="iterations",
        type=int,
        help=f"of sha512-pbkdf2 (default {passwords.PBKDF2_ITERATIONS}) and scram-sha-256 (default {ITERATIONS})",
    )
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("user", metavar="USER", nargs="?")
    parser.add_argument("password", metavar="PASSWORD", nargs="?")
    return parser


def run(argv: list[str]) -> int:
    """Exit codes: 0 done, 1 not done, 2 wrong options."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.user is None) != options.upgrade:
        parser.error("-U takes FILE alone" if options.upgrade else "USER is missing")
    if (options.password is not None) != options.batch:
        parser.error("-b needs PASSWORD" if options.batch else "PASSWORD on the command line needs -b")
    if options.iterations is None:
        options.iterations = passwords.default_iterations(options.hash)
    elif options.iterations < (least := ITERATIONS if options.hash == "scram-sha-256" else 1):
        parser.error(f"-I must be at least {least}")
    try:
        return _do(options)
    except AccessFileError as error:
        return _fail(str(error))


def _do(options: argparse.Namespace) -> int:
    file, user = options.file, options.user
    if options.upgrade:
        print(f"{passwords.hash_plain(file, options.hash, options.iterations)} passwords hashed")
        return 0
    if options.delete:
        return 0 if passwords.remove_user(file, user) else _fail(f"user {user} is not in {file}")
    if not user or user.startswith("#") or any(character in user for character in ":\r\n\0"):
        return _fail("a user name must not be empty, start with # or contain a colon or a line break")
    if len(user.encode()) > _USERNAME_BYTES_MAX:
        return _fail(f"a user name has at most {_USERNAME_BYTES_MAX} bytes")
    password = options.password if options.batch else _ask()
    if not password:
        return _fail("the passwords differ" if password is None else "the password is empty")
    try:
        stored = passwords.make_hash(password.encode(), options.hash, options.iterations)
    except ValueError as error:
        return _fail(f"not a password for {options.hash}: {error}")
    passwords.set_password(file, user, stored, options.create)
    return 0


def _ask() -> str | None:
    """None: the two that were typed differ."""
    password = getpass("Password: ")
    return password if getpass("Reenter password: ") == password else None


def _fail(message: str) -> int:
    print(f"midge passwd: {message}", file=sys.stderr)
    return 1

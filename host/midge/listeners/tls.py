"""Certificates: what a TLS listener shows, and what it asks for.
Knows files and OpenSSL, no connection.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def make_context(
    certfile: Path, keyfile: Path, cafile: Path | None, require_certificate: bool
) -> ssl.SSLContext:
    """TLS 1.2 and 1.3. OSError (ssl.SSLError is one): a file can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_files(context, certfile, keyfile, cafile)
    if require_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def reload_files(context: ssl.SSLContext, certfile: Path, keyfile: Path, cafile: Path | None) -> None:
    """New connections get what the files say now. OSError, and nothing changed: one can't be used.

    Authorities are only added: OpenSSL has no way to forget one that a context has loaded.
    """
    load_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certfile, keyfile, cafile)  # all or nothing
    load_files(context, certfile, keyfile, cafile)


def load_files(context: ssl.SSLContext, certfile: Path, keyfile: Path, cafile: Path | None) -> None:
    for path in (certfile, keyfile, cafile):
        if path is not None:
            path.open("rb").close()  # its error names the file, OpenSSL's doesn't
    try:
        # A key with a passphrase would be asked for on the terminal; a broker has none.
        context.load_cert_chain(certfile, keyfile, password=lambda: b"")
    except ssl.SSLError as error:
        raise OSError(None, f"not a certificate and its key: {error.reason or error}", str(certfile)) from None
    if cafile is not None:
        try:
            context.load_verify_locations(cafile)
        except ssl.SSLError as error:
            raise OSError(None, f"no certificates in it: {error.reason or error}", str(cafile)) from None

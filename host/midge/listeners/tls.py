"""Certificates: what a TLS listener shows, what it asks for, and whom a client's certificate names.
Knows files and OpenSSL, no connection.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import NamedTuple


class Files(NamedTuple):
    """Of one listener, all PEM."""

    certfile: Path
    keyfile: Path
    cafile: Path | None = None  # the authorities that clients' certificates must come from
    crlfile: Path | None = None  # what these have revoked


class Certificates:
    """`context` is for the server, and stays; `reload` changes what it shows and asks for."""

    def __init__(self, files: Files, require_certificate: bool) -> None:
        """TLS 1.2 and 1.3. OSError (ssl.SSLError is one): a file can't be used."""
        self._require_certificate = require_certificate
        self.context = self._current = self._make(files)
        # Called for each handshake, whether or not the client names a server. A context can't forget an
        # authority or a revocation that it has loaded, so each reload makes a new one.
        self.context.sni_callback = self._choose

    def reload(self, files: Files) -> None:
        """New connections get what the files say now. OSError, and nothing changed: one can't be used."""
        self._current = self._make(files)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _make(self, files: Files) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load(context, files)
        if self._require_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session doesn't check the certificate again: it would outlive a revocation.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        if files.crlfile is not None:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


def _load(context: ssl.SSLContext, files: Files) -> None:
    for path in files:
        if path is not None:
            path.open("rb").close()  # its error names the file, OpenSSL's doesn't
    try:
        # A key with a passphrase would be asked for on the terminal; a broker has none.
        context.load_cert_chain(files.certfile, files.keyfile, password=lambda: b"")
    except ssl.SSLError as error:
        where = str(files.certfile)
        raise OSError(None, f"not a certificate and its key: {error.reason or error}", where) from None
    for path, what in ((files.cafile, "no certificates"), (files.crlfile, "no revocation lists")):
        if path is None:
            continue
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise OSError(None, f"{what} in it: {error.reason or error}", str(path)) from None


def common_name(transport: asyncio.BaseTransport) -> str | None:
    """Of the client's certificate; None: it has none."""
    for part in (transport.get_extra_info("peercert") or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None


def subject(transport: asyncio.BaseTransport) -> str | None:
    """The whole name in the client's certificate, as RFC 4514 writes it: "CN=anna,O=Example"."""
    from cryptography.x509 import load_der_x509_certificate

    connection = transport.get_extra_info("ssl_object")
    encoded = None if connection is None else connection.getpeercert(True)
    if encoded is None:
        return None
    return load_der_x509_certificate(encoded).subject.rfc4514_string() or None

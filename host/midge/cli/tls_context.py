"""The TLS context that the options of a tool ask for.
Knows nothing of connections; imported only where TLS is asked for.
"""

import ssl

from midge.cli.options import Options, UsageError

_VERSIONS = {
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}


def make_context(options: Options) -> ssl.SSLContext:
    """Raises `UsageError` with the option that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Set before the trust is: without the host's name there is nothing else to compare a key's holder with.
    context.check_hostname = not options.insecure
    if options.tls_version:
        context.minimum_version = _VERSIONS[options.tls_version]  # mosquitto's tools take later ones, too
    if options.ciphers:
        try:
            context.set_ciphers(options.ciphers)
        except ssl.SSLError:
            raise UsageError(f"--ciphers {options.ciphers}: OpenSSL knows none of them.") from None
    if options.tls_alpn:
        context.set_alpn_protocols([options.tls_alpn])
    if options.psk is not None:
        _use_shared_key(context, options)
    else:
        _trust(context, options)
    if options.certfile:
        try:
            context.load_cert_chain(options.certfile, options.keyfile)
        except OSError as error:
            raise _problem(error, options.certfile, options.keyfile) from None
    return context


def _trust(context: ssl.SSLContext, options: Options) -> None:
    if options.use_os_certs:
        context.load_default_certs()
    if options.cafile or options.capath:
        try:
            context.load_verify_locations(options.cafile, options.capath)
        except OSError as error:
            raise _problem(error, options.cafile, options.capath) from None


def _use_shared_key(context: ssl.SSLContext, options: Options) -> None:
    try:
        key = bytes.fromhex(options.psk or "")
    except ValueError:
        raise UsageError("--psk needs a key in hexadecimal digits.") from None
    identity = options.psk_identity
    # The key vouches for the broker; there is no certificate. Python's callback is for TLS up to 1.2, as its
    # documentation says.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if not options.ciphers:
        context.set_ciphers("PSK")
    context.set_psk_client_callback(lambda _hint: (identity, key))  # type: ignore[attr-defined,unused-ignore]


def _problem(error: OSError, *names: str | None) -> UsageError:
    return UsageError(f"Problem setting TLS options from {', '.join(filter(None, names))}: {error}")

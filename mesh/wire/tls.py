"""TLS contexts of the standard library for gRPC: ALPN h2, TLS 1.2 or newer, mutual where a CA is given to a server."""

from __future__ import annotations

import ssl

from mesh.wire.transport import TlsConfig


def server_context(tls: TlsConfig) -> ssl.SSLContext:
    """Return the context of a listening port. Raises ValueError without a key pair, OSError for bad files."""
    if tls.cert is None or tls.key is None:
        msg = "TLS on a server needs both a certificate and its key"
        raise ValueError(msg)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2"])
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: TlsConfig) -> ssl.SSLContext:
    """Return the context of a client: the peer's name is checked, against `tls.ca` or the system's roots."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    return context

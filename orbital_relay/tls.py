"""TLS of the relay's own: a certificate that can be renewed while connections stand."""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from orbital_relay.errors import StartupError


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate chain and its key, ready to be served."""

    context: ssl.SSLContext
    pem: bytes
    expires_at: datetime

    @classmethod
    def read(cls, cert: Path, key: Path) -> "Chain":
        """Read PEM files. Raise StartupError where they are not a chain and its key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(cert, key, password="")  # without one OpenSSL asks at the terminal
            pem = cert.read_bytes()
        except OSError as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            why = f" ({reason})" if reason else ""
            raise StartupError(
                f"tls_cert = {cert}, tls_key = {key}: must be a certificate chain and its private key, in PEM,"
                f" without a passphrase{why}"
            ) from error
        try:
            expires_at = x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc
        except ValueError as error:
            raise StartupError(f"tls_cert = {cert}: {error}") from error
        return cls(context, pem, expires_at)


class Certificate:
    """What newcomers are shown: `context` is the listener's for good, the chain may be another one each time.

    A context keeps a chain that was loaded into it beside one whose key is of another kind, and goes on to show it to
    some. So each chain has a context of its own, and every handshake is moved to that of the newest.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = self._choose  # called for every handshake, whether a name was sent or not

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self.chain.context

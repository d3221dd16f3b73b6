"""Certificates for tests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def certificate(directory: Path, good_for: timedelta, *, elliptic: bool = False) -> tuple[Path, Path]:
    """The files of a self-signed certificate, and of its private key: Ed25519, or on P-256, another kind."""
    key = generate_private_key(SECP256R1()) if elliptic else Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay.example")])
    made_at = datetime.now(UTC) - timedelta(days=365)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(made_at)
        .not_valid_after(datetime.now(UTC) + good_for)
        .sign(key, SHA256() if elliptic else None)
    )
    cert, secret = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(built.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert, secret

"""Certificates and requests in tests: by srup's own authority, and by hand what it would not make."""

import time
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from srup import PrivateKey
from srup.keyex.certificates import CertificateAuthority, tls_pem

AUTHORITY = CertificateAuthority.create("srup tests", time.time())
"""Who signs the certificates of hosts and clients in tests."""


def host_files(folder, *names):
    """Write a certificate for these names (127.0.0.1), its authority behind it, and its key; return the two paths."""
    key, chain = AUTHORITY.issue_host(names or ["127.0.0.1"], time.time())
    cert_file, key_file = folder / "https.crt", folder / "https.key"
    cert_file.write_bytes(chain)
    key_file.write_bytes(key)
    return cert_file, key_file


def write_client(path, certificate, key):
    """Write a certificate and the key that it is for into one file; return its path."""
    path.write_bytes(tls_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def private_of(key):
    """The cryptography object of a PrivateKey, the one that signs; one that is such an object already."""
    return serialization.load_pem_private_key(key.to_pem(), None) if isinstance(key, PrivateKey) else key


def name_of(*names, others=()):
    """A subject with these common names, and names of organizations behind them."""
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names]
    return x509.Name(attributes + [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name) for name in others])


def certificate_of(key, name="d1", issuer=None, extensions=()):
    """A certificate for the public half of ``key``, with nothing in it that is not given here, until 2040.

    ``issuer`` is the name and key of who signs it: by default it signs itself. ``extensions`` are critical.
    """
    by, signer = issuer or (name_of(name), key)
    builder = x509.CertificateBuilder(
        by, name_of(name), key.public_key(), 1, datetime(2020, 1, 1), datetime(2040, 1, 1)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256())


def csr_of(key, *names, extensions=(), other_names=(), algorithm=None):
    """A signing request with these common names, made by cryptography alone."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name_of(*names, others=other_names))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    private = private_of(key)
    if algorithm is None and not isinstance(private, ed25519.Ed25519PrivateKey):
        algorithm = hashes.SHA256()
    return builder.sign(private, algorithm).public_bytes(serialization.Encoding.PEM)

"""What is wrong with a certificate that TLS refuses, in words that help.

Python has checked certificates strictly since 3.13 (``ssl.VERIFY_X509_STRICT``), and many private authorities issue
some that leave out what RFC 5280 demands. OpenSSL names the rule; this says which one to issue again, and with what.
"""

import ssl
from typing import Final

from .files import complaint

__all__ = ["explain"]

_LEAF: Final = "the certificate"
_AUTHORITY: Final = "the certificate of the authority (CA)"
_ANY: Final = "the certificate, or that of its authority (CA),"

# By OpenSSL's number (x509_vfy.h): which one must be issued again, and with which line of an OpenSSL extension section.
_STRICT: Final = {
    80: (_LEAF, "basicConstraints = CA:false"),
    81: (_AUTHORITY, "keyUsage = critical, keyCertSign, cRLSign"),
    82: (_LEAF, "keyUsage = critical, digitalSignature"),
    83: (_ANY, "an issuer that has a name"),
    84: (_ANY, "a subject that has a name"),
    85: (_LEAF, "authorityKeyIdentifier = keyid"),
    86: (_AUTHORITY, "subjectKeyIdentifier = hash"),
    87: (_LEAF, "subjectAltName = DNS:<host>"),
    88: (_LEAF, "subjectAltName = critical, DNS:<host>"),
    89: (_AUTHORITY, "basicConstraints = critical, CA:true"),
    90: (_ANY, "authorityKeyIdentifier = keyid, which is not critical"),
    91: (_ANY, "subjectKeyIdentifier = hash, which is not critical"),
    92: (_AUTHORITY, "keyUsage = critical, keyCertSign, cRLSign"),
    93: (_ANY, "X.509 version 3, which has extensions"),
}


def explain(error: OSError, *, own_context: bool = False) -> str:
    """Return what an error says, and for a certificate that is only refused by the strict check how to go on.

    ``own_context`` says that whoever reads it can give an SSLContext.
    """
    if not isinstance(error, ssl.SSLCertVerificationError) or error.verify_code not in _STRICT:
        return complaint(error)
    which, remedy = _STRICT[error.verify_code]
    otherwise = ", or pass an SSLContext whose verify_flags lack ssl.VERIFY_X509_STRICT" if own_context else ""
    return (
        f"{which} breaks a rule of RFC 5280 that Python checks since 3.13: {error.verify_message}. Issue it again with "
        f"`{remedy}`{otherwise}"
    )

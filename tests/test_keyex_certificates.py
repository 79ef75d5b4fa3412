"""srup.keyex.certificates: what a certificate says, and what a signing request cannot make it say."""

import time
from base64 import encodebytes
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from srup import KeyServiceError, PrivateKey
from srup.keyex.certificates import DAY, CertificateAuthority, request_certificate, requested_key, tls_pem
from srup.keyex.proof import signing_key

from .certificates import csr_of, private_of
from .fleet import key_of
from .keyex_site import DEVICE

NOW = float(int(time.time()))
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("srup keyex 1", NOW)


def extensions(certificate):
    return {type(extension.value).__name__: extension.value for extension in certificate.extensions}


def refused(pem, identity=DEVICE):
    with pytest.raises(KeyServiceError) as caught:
        requested_key(pem, identity)
    assert (caught.value.status, caught.value.field) == (400, "csr")
    return caught.value.reason


def test_the_authority_signs_certificates_and_nothing_below_it_does(authority):
    found = extensions(authority.certificate)
    assert found["BasicConstraints"] == x509.BasicConstraints(ca=True, path_length=0)
    assert found["KeyUsage"].key_cert_sign
    assert found["KeyUsage"].crl_sign
    assert not found["KeyUsage"].digital_signature
    again = CertificateAuthority.load(authority.pem, authority.key_pem)
    assert again.fingerprint == authority.fingerprint


def test_an_authority_with_the_key_of_another_does_not_load(authority):
    with pytest.raises(ValueError, match="not that of its certificate"):
        CertificateAuthority.load(authority.pem, CertificateAuthority.create("other", NOW).key_pem)


@pytest.mark.parametrize("scheme", ["rsa2048", "rsa3072", "p256", "ed25519"])
def test_a_clients_certificate_says_who_and_nothing_else(authority, scheme_keys, scheme):
    key = scheme_keys[scheme]
    certificate = authority.certify_client(DEVICE, key.public_key, NOW, 7 * DAY)
    certificate.verify_directly_issued_by(authority.certificate)
    assert certificate.subject.rfc4514_string() == "CN=d1"
    assert certificate.public_key() == private_of(key).public_key()
    found = extensions(certificate)
    assert set(found) == {
        *("BasicConstraints", "KeyUsage", "ExtendedKeyUsage", "SubjectKeyIdentifier", "AuthorityKeyIdentifier")
    }
    assert not found["BasicConstraints"].ca
    assert list(found["ExtendedKeyUsage"]) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + 7 * DAY, UTC)
    assert certificate.not_valid_before_utc < datetime.fromtimestamp(NOW, UTC)


def test_a_hosts_certificate_names_hosts_and_no_identity(authority):
    certificate = authority.certify_host(["broker.example", "127.0.0.1", "::1"], key_of(1, "p256"), NOW)
    found = extensions(certificate)
    assert list(found["ExtendedKeyUsage"]) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(found["SubjectAlternativeName"]) == [
        x509.DNSName("broker.example"),
        x509.IPAddress(ip_address("127.0.0.1")),
        x509.IPAddress(ip_address("::1")),
    ]
    assert certificate.subject.rfc4514_string() == "CN=srup host"


@pytest.mark.parametrize("name", ["", "*.example", "*", " broker", "bröker.example"])
def test_a_bad_host_name_is_refused(authority, name):
    with pytest.raises(ValueError, match=r"host|idna|A-label|ASCII"):
        authority.certify_host([name], key_of(1, "p256"), NOW)


def test_the_revocation_list_is_signed_and_numbered(authority):
    crl = x509.load_pem_x509_crl(authority.revocation_list([5, 2**150], 9, NOW))
    assert crl.is_signature_valid(authority.certificate.public_key())
    assert {entry.serial_number for entry in crl} == {5, 2**150}
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 9
    assert crl.next_update_utc.timestamp() == NOW + 90 * DAY
    assert not list(x509.load_pem_x509_crl(authority.revocation_list([], 1, NOW)))


@pytest.mark.parametrize("scheme", ["rsa2048", "p256", "ed25519"])
def test_a_request_proves_its_key_and_name(scheme_keys, scheme):
    key = scheme_keys[scheme]
    found = requested_key(request_certificate(DEVICE, key), DEVICE)
    assert signing_key(found) == signing_key(key.public_key)
    assert private_of(key).public_key() == x509.load_pem_x509_csr(request_certificate(DEVICE, key)).public_key()
    assert serialization.load_pem_private_key(tls_pem(key), None).public_key() == private_of(key).public_key()


@pytest.mark.parametrize("name", ["d1", "D1", "00d1", "00000000000000D1"])
def test_spellings_of_the_name(name):
    requested_key(csr_of(key_of(1), name), DEVICE)


@pytest.mark.parametrize(
    "names",
    [
        *((), ("d2",), ("d1", "d2"), ("d1", "d1"), ("*",), ("+",), ("#",), ("d1/+",), ("d1/#",), ("d*",), ("0xd1",)),
        *(("d1 ",), (" d1",), ("d1\n",), ("d1\0",), ("SRUP/d1",), ("0" * 15 + "d1",), ("\uff441",), ("5e41ce",)),
    ],
)
def test_another_name_is_refused(names):
    assert "one common name, d1" in refused(csr_of(key_of(1), *names))


def test_other_parts_of_the_subject_do_not_count_as_the_name():
    assert "one common name" in refused(csr_of(key_of(1), other_names=["d1"]))
    requested_key(csr_of(key_of(1), "d1", other_names=["Example Ltd"]), DEVICE)  # deployed clients may have one


def test_a_request_that_its_key_did_not_sign_is_refused():
    request = x509.load_pem_x509_csr(csr_of(key_of(1, "p256"), "d1")).public_bytes(serialization.Encoding.DER)
    spoiled = request[:-1] + bytes([request[-1] ^ 1])
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n" % encodebytes(spoiled)
    assert "not signed by the key" in refused(pem)


def test_a_weak_key_in_a_request_is_refused():
    for bits, exponent, said in ((1024, 65537, "1024 bits"), (2048, 3, "exponent 3")):
        assert said in refused(csr_of(rsa.generate_private_key(exponent, bits), "d1"))
    assert "no signing key" in refused(csr_of(ec.generate_private_key(ec.SECP384R1()), "d1"))


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"junk",
        b"\0" * 1000,
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        key_of(1).public_key.to_pem(),
        b"-----BEGIN CERTIFICATE REQUEST-----\n" + b"A" * 20000,
    ],
)
def test_junk_is_no_request(pem):
    refused(pem)


def test_every_cut_of_a_request_is_refused():
    pem = csr_of(key_of(1), "d1")
    for end in range(len(pem) - 1):
        refused(pem[:end])


def test_tls_keys_are_written_alone():
    assert tls_pem(PrivateKey.generate("ed25519")).count(b"BEGIN") == 1

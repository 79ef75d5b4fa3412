"""srup.keyex.forms and proof: what a request must look like, and what its signatures say."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import example, given
from hypothesis import strategies as st

from srup import KeyServiceError, PublicKey
from srup.keyex.forms import FIELDS, FORMS, MAX_BODY, Form, Identity, parse_identity, parse_key, read
from srup.keyex.proof import endorsement, enrolment, is_signed, rotation, sign, signing_key, statement
from srup.keys import SCHEMES, PrivateKey

from .fleet import key_of
from .keyex_site import bare, text

WHOLE = {
    "identity": "d1",
    "key": key_of(1).public_key.to_pem().decode(),
    "new_key": key_of(2).public_key.to_pem().decode(),
    "type": "RSYND",
    "csr": "YQ==",
    "signature": "YQ==",
    "new_signature": "YQ==",
    "proof": "YQ==",
    "token": "A" * 32,
}


def refusal(form, body):
    with pytest.raises(KeyServiceError) as caught:
        read(form, body)
    assert caught.value.status == 400
    assert str(caught.value).isprintable()
    return caught.value.field


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_whole_request_is_read_and_each_missing_field_is_named(form):
    values = read(form, json.dumps(WHOLE | {"more": [1]}).encode())
    assert values.keys() == {*form.required, *form.optional}
    for name in form.required:
        assert refusal(form, json.dumps({**WHOLE, name: None}).encode()) == name
        assert refusal(form, json.dumps({key: value for key, value in WHOLE.items() if key != name}).encode()) == name
    for name in form.optional:
        assert read(form, json.dumps({**WHOLE, name: None}).encode())[name] is None


def test_every_field_has_a_reader():
    assert {name for form in FORMS.values() for name in (*form.required, *form.optional)} == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", [1, True, 1.5, [], ["d1"], {}, "", "\0", "d1\n", "\ud800", "!" * 70_000, "é", "-----!"]
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name, value):
    assert refusal(Form((name,)), json.dumps({name: value}).encode()) == name


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"identity"', b"null", b"1", b"\xff\xfe{}", b'{"identity":"d1",}', b"{'identity':'d1'}"),
        b"[" * MAX_BODY,
        b'{"a":' * 5000,
        b"9" * 5000,
        b'{"identity":"d1","identity":"d2"}',
    ],
)
def test_what_is_no_json_object_is_refused(body):
    assert refusal(FORMS["validate"], body) == ""


@given(st.binary(max_size=300))
@example(b'{"identity": NaN, "signature": Infinity}')
def test_any_bytes_are_refused(body):
    refusal(FORMS["validate"], body)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda each: st.lists(each), max_leaves=4
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values))
def test_any_values_are_read_or_refused(document):
    for form in FORMS.values():
        try:
            values = read(form, json.dumps(document).encode())
        except KeyServiceError:
            continue
        assert values.keys() == {*form.required, *form.optional}


@pytest.mark.parametrize(
    ("spelled", "number"),
    [("0", 0), ("d1", 0xD1), ("00D1", 0xD1), ("f" * 16, 2**64 - 1), ("0" * 16, 0)],
)
def test_spellings_of_an_identity(spelled, number):
    assert parse_identity(spelled) == Identity(number, spelled)


@pytest.mark.parametrize("spelled", ["", "0x1", "-1", "+1", "1_0", "g", " 1", "1 ", "f" * 17, "\u0661", "d1\n"])
def test_what_is_no_identity(spelled):
    with pytest.raises(KeyServiceError) as caught:
        parse_identity(spelled, "server")
    assert caught.value.field == "server"


TYPES = Form(("type",))


@pytest.mark.parametrize("kind", ["device", "LED sign", "a b c", "RSYND", "x" * 32, "v1.2-b_3"])
def test_a_type_may_have_several_words(kind):
    assert read(TYPES, json.dumps({"type": kind}).encode()) == {"type": kind}


@pytest.mark.parametrize("kind", ["", " ", " c2", "c2 ", "a  b", "a\tb", "a\nb", "x" * 33, "x " * 16 + "x", "\u00e9"])
def test_what_is_no_type(kind):
    assert refusal(TYPES, json.dumps({"type": kind}).encode()) == "type"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_key_in_each_of_its_forms(scheme_keys, scheme):
    public = scheme_keys[scheme].public_key
    pem = public.to_pem()
    assert parse_key(pem.decode()) == public
    assert parse_key(pem.decode().replace("\n", "\r\n")) == public
    first = pem[: pem.index(b"-----END PUBLIC KEY-----") + 25]
    assert signing_key(parse_key(bare(first))) == signing_key(public)


def test_a_weak_key_is_refused_with_the_reason(vector_keys):
    with pytest.raises(KeyServiceError, match="1024 bits"):
        parse_key(vector_keys["C1024"].public_key.to_pem().decode())


# --- signatures


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signature_is_good_for_its_key_and_its_bytes_alone(scheme_keys, scheme):
    key, other = scheme_keys[scheme], key_of(9, "rsa2048" if scheme != "rsa2048" else "ed25519")
    signature = sign(key, b"signed")
    assert is_signed(key.public_key, b"signed", signature)
    assert not is_signed(key.public_key, b"signed!", signature)
    assert not is_signed(other.public_key, b"signed", signature)
    for wrong in (b"", b"\0", signature[:-1], signature + b"\0", bytes(len(signature)), b"x" * 100_000):
        assert not is_signed(key.public_key, b"signed", wrong)


@pytest.mark.parametrize("length", [0, 32, padding.PSS.MAX_LENGTH])
def test_any_salt_of_pss_is_accepted_and_the_longest_is_made(vector_keys, length):
    key = vector_keys["A2048"]
    private, public = key.unsealing_key(), key.public_key
    pss = padding.PSS(padding.MGF1(SHA256()), length)
    assert is_signed(public, b"d1", private.sign(b"d1", pss, SHA256()))
    longest = padding.PSS(padding.MGF1(SHA256()), 222)  # 256 - 32 - 2 (RFC 8017, section 9.1.1)
    public.sealing_key().verify(sign(key, b"d1"), b"d1", longest, SHA256())


def test_a_message_signature_is_not_taken_for_one_of_these(vector_keys):
    """RSA signs messages with PKCS #1 v1.5, and PSS is not that."""
    key = vector_keys["A2048"]
    assert not is_signed(key.public_key, b"d1", key.sign(b"d1"))


def test_no_two_purposes_have_the_same_bytes():
    old, new = key_of(1).public_key, key_of(2).public_key
    signed = [
        *(b"d1", b"-----BEGIN CERTIFICATE REQUEST-----", endorsement(old)),
        *(enrolment(0xD1, "token"), enrolment(0xD, "1token"), rotation(0xD1, old, new), rotation(0xD1, new, old)),
        *(rotation(0xD2, old, new), statement("x", "y", "z"), statement("x", "yz"), statement("xy", "z")),
    ]
    assert len(set(signed)) == len(signed)


def test_text_is_base64():
    assert text(b"a") == WHOLE["csr"]
    assert PublicKey.from_pem(WHOLE["key"]) == key_of(1).public_key
    assert isinstance(key_of(1), PrivateKey)

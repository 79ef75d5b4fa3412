"""The value of a join: its forms, what matches it, and that nothing shows it unasked."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srup import JoinValue, PrivateKey, seal, unseal
from srup.errors import SealError

VALUES = st.binary(min_size=16, max_size=16).map(JoinValue.new)
BLOCKS = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}

# BIP 39, https://github.com/trezor/python-mnemonic/blob/master/vectors.json
BIP39 = {
    "00000000000000000000000000000000": "abandon " * 11 + "about",
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f": "legal winner thank year wave sausage worth useful legal winner thank yellow",
    "80" * 16: "letter advice cage absurd amount doctor acoustic avoid letter advice cage above",
    "ffffffffffffffffffffffffffffffff": "zoo " * 11 + "wrong",
    "9e885d952ad362caeb4efe34a8e91bd2": "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic",
    "c0ba5a8e914111210f2bd131f3d5e08d": "scheme spot photo card baby mountain device kick cradle pact join borrow",
    "23db8160a31d3e0dca3688ed941adbf3": "cat swing flag economy stadium alone churn speed unique patch report train",
}


@pytest.mark.parametrize(("text", "words"), BIP39.items(), ids=list(BIP39))
def test_the_words_are_those_of_bip_39(text, words):
    value = JoinValue.new(bytes.fromhex(text))
    assert (value.text, value.words) == (text, words)
    assert value.plaintext == text.encode()
    assert value.matches(words)


@pytest.mark.parametrize(
    ("number", "groups"),
    [
        (0, "00000 00000 00000 00000 00000 00000 00000 00000"),
        (1234567, "00000 00000 00000 00000 00000 00000 00012 34567"),
        ((1 << 128) - 1, "03402 82366 92093 84634 63374 60743 17682 11455"),
    ],
)
def test_the_groups_are_the_number_in_decimal(number, groups):
    assert JoinValue.new(number.to_bytes(16)).groups == groups


def forms(value):
    return [value.text, value.groups, value.words, value.groups.replace(" ", ""), value.plaintext.decode()]


@given(VALUES)
def test_every_form_leads_back_to_the_value(value):
    assert bytes.fromhex(value.text) == int(value.groups.replace(" ", "")).to_bytes(16) == value._bits
    for form in forms(value):
        for read in (form, form.upper(), f"  {form.replace(' ', '  ')}\r\n", form.encode(), f"{form}\n".encode()):
            assert value.matches(read)


@given(VALUES, VALUES)
def test_another_value_does_not_match(value, other):
    assert (value == other) is (value.text == other.text) is (hash(value) == hash(other))
    for form in forms(other):
        assert value.matches(form) is (value == other)


@given(VALUES, st.text() | st.binary())
def test_what_is_none_of_the_forms_does_not_match(value, read):
    assert not value.matches(read)


@given(VALUES, st.data())
def test_one_wrong_character_does_not_match(value, data):
    form = data.draw(st.sampled_from(forms(value)))
    at = data.draw(st.sampled_from([at for at, sign in enumerate(form) if sign != " "]))
    wrong = data.draw(st.characters(exclude_categories=["Z", "Cc"]).filter(lambda sign: sign.lower() != form[at]))
    assert not value.matches(form[:at] + wrong + form[at + 1 :])
    assert not value.matches(form[:at])
    assert not value.matches(f"{form} {form}")


@pytest.mark.parametrize("read", ["", b"", " ", "\ud800", b"\xff", "\0", "0", "zoo " * 12])
def test_junk_does_not_match(read):
    assert not JoinValue.new(bytes(range(16))).matches(read)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_value_has_16_bytes(size):
    with pytest.raises(ValueError, match="16 random bytes"):
        JoinValue.new(bytes(size))


@given(VALUES)
def test_nothing_shows_it_unasked(value):
    record = logging.LogRecord("srup", logging.ERROR, "", 0, "%r %s %a", (value, value, [value]), None)
    for shown in (repr(value), str(value), f"{value}", repr({"value": value}), record.getMessage()):
        assert "not shown" in shown
        for form in forms(value):
            assert form not in shown
            assert form.split()[0] not in shown or len(form.split()[0]) < 5


def test_it_equals_nothing_else():
    value = JoinValue.new(bytes(16))
    assert value != value.text
    assert (value == 0) is False
    assert len({value, JoinValue(value.plaintext), JoinValue.new(bytes([1] * 16))}) == 2


# What deployed servers may send: 32 bytes, padded with NULs, of whatever text they like.


def test_a_deployed_servers_uuid_is_the_value_itself():
    value = JoinValue(b"6fb9e8d6c0f84d0f9b1a5f0f4a6f0c11")
    assert value.text == "6fb9e8d6c0f84d0f9b1a5f0f4a6f0c11"
    assert value == JoinValue.new(bytes.fromhex(value.text))


@pytest.mark.parametrize(
    "plaintext",
    [
        b"short",
        b"1234",
        "Größe und Höhe, 32 Zeichen".encode(),
        b"\xff" * 32,
        b"Mixed Case  twice",
        b" \xfe\0\xfe ",
        b"x" * 99,
    ],
    ids=repr,
)
def test_odd_plaintexts_have_all_forms(plaintext):
    value, padded = JoinValue(plaintext), JoinValue(plaintext.ljust(32, b"\0"))
    assert value == padded
    assert value.plaintext == padded.plaintext == plaintext
    for read in (value.text, value.groups, value.words, plaintext, plaintext + b"\n"):
        assert value.matches(read)
    assert len(value.words.split()) == 12
    assert not value.matches(plaintext + b"x")
    assert not value.matches(plaintext[:-1] if plaintext[-1:].strip() else plaintext[:-2])


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_two_plaintexts_match_only_if_they_are_the_same(one, other):
    if not one.strip(b"\0").strip() or not other.strip(b"\0").strip():
        return
    first, second = one.rstrip(b"\0").strip(), other.rstrip(b"\0").strip()
    if first and second:
        assert JoinValue(first).matches(second) is (first == second)


@pytest.mark.parametrize("bad", [b"\xfe" * 32, "\ufffd" * 32, b"\xef\xbf\xbd" * 32])
def test_bytes_that_are_no_text_are_not_taken_for_others(bad):
    assert not JoinValue(b"\xff" * 32).matches(bad)


@pytest.mark.parametrize("plaintext", [b"", b"\0" * 32, b" \t\n", b" " * 20 + b"\0" * 12])
def test_an_empty_value_is_none(plaintext):
    with pytest.raises(SealError, match="empty"):
        JoinValue(plaintext)


@pytest.mark.parametrize("scheme", ["rsa2048", "ed25519"])
def test_it_survives_being_sealed(scheme):
    key = PrivateKey.generate(scheme)
    value = JoinValue.new(bytes(range(16)))
    assert JoinValue(unseal(seal(value.plaintext, key.public_key), key)) == value


# The QR code.


@settings(max_examples=30)
@given(VALUES)
def test_the_blocks_of_the_qr_code_are_its_modules(value):
    import segno

    rows = value.qr(border=2).rstrip("\n").split("\n")
    light = [[BLOCKS[block][half] for block in row] for row in rows for half in (0, 1)]
    code = segno.make(value.text, error="m", micro=False)
    dark = [[int(not module) for module in row] for row in code.matrix_iter(border=2)]
    assert light[: len(dark)] == dark


def test_the_qr_code_fits_a_terminal_of_80_columns_and_24_rows():
    rows = JoinValue.new(bytes(range(16))).qr().rstrip("\n").split("\n")
    assert ({len(row) for row in rows}, len(rows)) == ({33}, 17)

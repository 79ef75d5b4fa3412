"""Bound tokens: their one written form, and the refusal of everything that only looks like it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srup.errors import PolicyError
from srup.tokens import NONCE_SIZE, BoundToken, bind, parse, plain_expiry

NONCE = bytes(range(16))
TEXT = b"AAECAwQFBgcICQoLDA0ODw"


def test_the_written_form():
    """Part of the wire contract: sender and recipient in hex, expiry in decimal, nonce in base64url."""
    assert bind(0x5E, 0xDEADBEEF, 1_900_000_000, NONCE) == b"srup5:5e:deadbeef:1900000000:" + TEXT
    assert bind(0, 0, 0, bytes(16)) == b"srup5:0:0:0:" + b"A" * 22
    assert (
        bind(2**64 - 1, 2**64 - 1, 1.99, b"\xff" * 16)
        == b"srup5:ffffffffffffffff:ffffffffffffffff:1:" + b"_" * 21 + b"w"
    )
    assert bind(1, 1, -5.5, NONCE) == b"srup5:1:1:0:" + TEXT


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**18 - 1),
    st.binary(min_size=16, max_size=16),
)
def test_round_trip(sender, recipient, expiry, nonce):
    token = bind(sender, recipient, expiry, nonce)
    assert parse(token)[:3] == (sender, recipient, expiry)
    assert token.isascii()
    assert not set(token) & set(b" \0\r\n\t")
    assert parse(bind(1, recipient, expiry, nonce)).nonce == parse(token).nonce


KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, b""), ({"version": 7}, b":v7"), ({"receipt": True}, b":r"), ({"place": (5, 7), "after": 2}, b":r5.7.2")],
)
def test_a_key_is_the_first_field(options, more):
    token = bind(1, 2, 3, NONCE, key=KEY, **options)
    assert token == b"srup5:1:2:3:" + TEXT + b":k" + KEY.encode() + more
    assert parse(token) == parse(bind(1, 2, 3, NONCE, **options))._replace(key=KEY)
    assert parse(token + b":x:k" + KEY.encode()).key == KEY


@pytest.mark.parametrize(
    "fields", [b":k", b":k0123456789abcde", b":k0123456789abcdef0", b":k0123456789ABCDEF", b":x:k0123456789abcdef"]
)
def test_what_looks_like_a_key_and_is_none_is_ignored(fields):
    assert parse(b"srup5:1:2:3:" + TEXT + fields).key == ""


@pytest.mark.parametrize("key", ["x", "0123456789abcde", "0123456789ABCDEF", KEY + "0", KEY + "\n"])
def test_bind_names_no_key_that_parse_does_not_read(key):
    with pytest.raises(ValueError, match=r"^a key is named by 16 lower-case hex digits, not "):
        bind(1, 2, 3, NONCE, key=key)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_different_nonces_give_different_tokens(one, other):
    assert (bind(1, 1, 1, one) == bind(1, 1, 1, other)) == (one == other)


@given(st.integers(0, 2**64 - 1), st.floats(0, 2**52))
def test_an_expiry_is_rounded_down(recipient, expiry):
    assert parse(bind(1, recipient, expiry, NONCE)).expiry == int(expiry) <= expiry


@pytest.mark.parametrize("other", [-1, 2**64, 10**30])
def test_bind_takes_identities_only(other):
    for pair in ((other, 1), (1, other)):
        with pytest.raises(ValueError, match=r"^sender and recipient are identities in 0\.\.2\*\*64-1$"):
            bind(*pair, 1, NONCE)


@pytest.mark.parametrize("expiry", [10**18, 1e30, float("inf"), float("nan")])
def test_bind_makes_nothing_that_parse_refuses(expiry):
    with pytest.raises(ValueError, match=r"^an expiry is Unix time below 1000000000000000000, not "):
        bind(1, 1, expiry, NONCE)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_nonce_has_sixteen_bytes(size):
    with pytest.raises(ValueError, match=rf"^a nonce has 16 bytes, not {size}$"):
        bind(1, 1, 1, bytes(size))
    assert NONCE_SIZE == 16


@pytest.mark.parametrize(
    "token",
    [
        b"t",
        b"",
        b"54e1bs12-f5ca-4deb-bf66-d1c03f31af405",
        b"SRUP5:1:1:1:" + TEXT,
        b"srup:1",
        b"srup6:1:1:1:" + TEXT,
        b"\xff",
    ],
)
def test_other_tokens_are_opaque(token):
    assert parse(token) is None


@given(st.binary(max_size=60).filter(lambda token: not token.startswith(b"srup5:")))
def test_any_other_bytes_are_opaque(token):
    assert parse(token) is None


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b":::",
        b"7:1:1",
        b"1:1:" + TEXT,  # three parts
        b"07:1:1:" + TEXT,
        b"A:1:1:" + TEXT,
        b":1:1:" + TEXT,
        b"7:1:1:",
        b"7::1:" + TEXT,
        b"7:1::" + TEXT,
        b"7:01:1:" + TEXT,  # leading zeros would give one recipient two names
        b"7:1:01:" + TEXT,
        b"7:A:1:" + TEXT,
        b"7:0x1:1:" + TEXT,
        b"7:-1:1:" + TEXT,
        b"7:1:-1:" + TEXT,
        b"7:1:+1:" + TEXT,
        b"7:1:1e9:" + TEXT,
        b"7:1:1.5:" + TEXT,
        b"7:1: 1:" + TEXT,
        b"7:1:1_0:" + TEXT,
        b"7:1" * 17 + b":1:" + TEXT,
        b"7:1:" + b"1" * 19 + b":" + TEXT,
        b"7:1:1:" + TEXT[:-1],
        b"7:1:1:" + TEXT + b"A",
        b"7:1:1:" + TEXT[:-1] + b"=",
        b"7:1:1:" + TEXT[:-1] + b"+",
        b"7:1:1:" + TEXT + b" ",
        b"7:1:1:" + TEXT + b"\n",
        b"7:1:1:" + TEXT + b"\0",
        b"7:1:1:" + TEXT + b":a b",
        b"7:1:1:" + TEXT + b":\xc3\xbc",
        b"7:1:1:" + TEXT + b":x\n",
        "7:1:\N{ARABIC-INDIC DIGIT ONE}:".encode() + TEXT,
    ],
)
def test_malformed_bound_tokens_are_refused_not_opaque(rest):
    with pytest.raises(PolicyError, match=r"^malformed bound token b['\"]srup5:"):
        parse(b"srup5:" + rest)


def test_the_refusal_of_a_long_token_is_short():
    with pytest.raises(PolicyError) as caught:
        parse(b"srup5:" + b"\n" * 65000)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [b":", b"::", b":x", b":floor=12", b":a:b:c", b":~!" + b"y" * 60000])
def test_further_fields_are_ignored(more):
    assert parse(b"srup5:7:1f:99:" + TEXT + more) == BoundToken(7, 0x1F, 99, TEXT)


@given(st.binary(max_size=40))
def test_every_bound_token_parses_or_is_refused(rest):
    try:
        bound = parse(b"srup5:" + rest)
    except PolicyError:
        return
    assert bound is not None


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**18 - 1), st.data())
def test_no_cut_of_a_token_means_something_else(recipient, expiry, data):
    token = bind(recipient, recipient, expiry, NONCE)
    cut = token[: data.draw(st.integers(6, len(token) - 1))]
    with pytest.raises(PolicyError):
        parse(cut)


@given(st.integers(0, 10**18 - 1))
def test_an_order_names_its_version(version):
    token = bind(1, 2, 3, NONCE, version)
    assert token == bind(1, 2, 3, NONCE) + b":v%d" % version
    assert parse(token).version == version
    assert parse(token + b":more").version == version
    assert parse(bind(1, 2, 3, NONCE)).version is None


@pytest.mark.parametrize("version", [-1, 10**18, 1.0, "7", True])
def test_a_version_is_a_number(version):
    with pytest.raises(ValueError, match="a firmware version is a number"):
        bind(1, 2, 3, NONCE, version)


@pytest.mark.parametrize(
    "field", [b":v", b":v07", b":v-1", b":vv7", b":V7", b":v7a", b":xv7", b":v1000000000000000000"]
)
def test_what_is_no_version_is_a_field_that_nobody_knows(field):
    assert parse(bind(1, 2, 3, NONCE) + field).version is None


def test_two_versions_are_none():
    with pytest.raises(PolicyError, match="several versions"):
        parse(bind(1, 2, 3, NONCE, 7) + b":v8")


@pytest.mark.parametrize("after", [0, 3, 6, None])
def test_a_place_says_whom_it_may_follow(after):
    token = bind(1, 2, 3, bytes(16), place=(5, 7), after=after)
    bound = parse(token)
    assert bound.receipt
    assert bound.place == (5, 7)
    assert bound.after == (6 if after is None else after)
    assert token.endswith(b":r5.7" if after in (None, 6) else b":r5.7.%d" % after)


@pytest.mark.parametrize("place", [b"5.7.7", b"5.7.8", b"5.7.18446744073709551616"])
def test_a_place_follows_only_what_is_before_it(place):
    with pytest.raises(PolicyError):
        parse(bind(1, 2, 3, bytes(16)) + b":r" + place)


@pytest.mark.parametrize("place", [b"5.7.", b"5.7.01", b"5.7.-1", b"5.7.1.1"])
def test_what_looks_like_a_place_and_is_none_is_ignored(place):
    bound = parse(bind(1, 2, 3, bytes(16)) + b":r" + place)
    assert bound.place is None


@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda *parts: b"srup5:%x:%x:%s:%s%s" % parts,
            st.integers(0, 20),
            st.integers(0, 20),
            st.sampled_from([b"0", b"00", b"7", b"07", b"-1", b"1900000000", b"9" * 18, b"9" * 19, b""]),
            st.sampled_from([b"A" * 22, b"A" * 21, b"A" * 23, b"_-" * 11, b"=" * 22]),
            st.sampled_from([b"", b":", b":k0123456789abcdef", b":r", b":r1.2", b":v7", b":x", b"\n", b" "]),
        ),
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_a_plain_token_is_one_that_says_nothing_but_names_expiry_and_nonce(token, sender, recipient):
    try:
        bound = parse(token)
    except PolicyError:
        bound = None
    plain = bound is not None and bound == BoundToken(sender, recipient, bound.expiry, bound.nonce)
    plain = plain and token.count(b":") == 4  # fields that nobody knows are for the usual way
    assert plain_expiry(token, sender, recipient) == (bound.expiry if plain else None)


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**18 - 1),
    st.binary(min_size=16, max_size=16),
)
def test_what_is_bound_without_more_is_plain(sender, recipient, expiry, nonce):
    token = bind(sender, recipient, expiry, nonce)
    assert plain_expiry(token, sender, recipient) == expiry
    assert plain_expiry(token, sender ^ 1, recipient) is None
    assert plain_expiry(token, sender, recipient ^ 1) is None
    assert plain_expiry(bind(sender, recipient, expiry, nonce, receipt=True), sender, recipient) is None

"""The twins, side by side: the same input must give the same value, or the same exception with the same text."""

from enum import IntEnum
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from srup.messages import SCHEMA

pytestmark = pytest.mark.backend

TYPES = [message.layout.type for message in SCHEMA[:]]
HEADER = ("sequence_id", "sender_id", "token")
RANGES = (0xFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
ANYONE = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))


class Number(IntEnum):
    SMALL = 3
    LARGE = 2**64


class Whole(int):
    def __str__(self):
        return "not a number"


def outcome(call, *arguments, **keywords):
    """What a call comes to, in a form that can be compared across the twins."""
    try:
        value = call(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other twin must raise the same
        return type(error), error.args, str(error)
    return shown(value)


def shown(value):
    if hasattr(value, "layout"):
        return repr(value), [(name, type(item), item) for name, item in value]
    if hasattr(value, "sender_id") and hasattr(value, "verify"):
        return repr(value), value.version, value.type, shown(value.verify(ANYONE))
    return type(value), value


def agree(twins, call):
    """Run ``call`` on each twin and return their one outcome."""
    native, pure = (call(twin) for twin in twins)
    assert native == pure
    return native


# --- what is drawn

good_values = {
    0: st.integers(0, RANGES[0]),
    1: st.integers(0, RANGES[1]),
    2: st.integers(0, RANGES[2]),
    3: st.binary(max_size=40),
    4: st.text(max_size=20),
    5: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
}
any_value = st.one_of(
    st.integers(),
    st.sampled_from([-1, 255, 256, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 10**5000, -(10**5000), 2**128, -(2**128)]),
    st.sampled_from(
        [None, True, False, 1.0, 0.0, Number.SMALL, Number.LARGE, Whole(7), Whole(-7), bytearray(b"x"), [], 1j]
    ),
    st.binary(max_size=9),
    st.text(max_size=9),
    st.sampled_from(["\ud800", "a\0b", "\0", "x" * 65534, "x" * 65535, "x" * 65536, "\N{SNOWMAN}" * 21845, "\ud800\0"]),
    st.sampled_from([b"", b"x" * 65535, b"x" * 65536]),
)
names = st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda name: name != "layout")


@st.composite
def layouts(draw):
    """The arguments of a layout that can be."""
    fields = draw(st.lists(names, unique=True, max_size=8))
    return (
        draw(st.integers(1, 255)),
        draw(names),
        tuple((f"f_{name}", draw(st.integers(0, 5))) for name in fields),
        draw(st.integers(0, 8)),
    )


def bind(twin, layout):
    """A record class with this layout, and a schema that knows it."""
    record = type(layout[1], (twin.codec.Record,), {})
    record.bind(twin.codec.Layout(*layout))
    schema = twin.codec.Schema()
    schema.add(record)
    return record, schema


def kinds(layout):
    return [*zip(HEADER, (2, 2, 3), strict=True), *layout[2]]


@st.composite
def layouts_and_values(draw):
    layout = draw(layouts())
    return layout, {name: draw(good_values[kind]) for name, kind in kinds(layout)}


odd_text = st.one_of(st.binary(max_size=6), st.text("a\0é", max_size=6).map(str.encode))


@st.composite
def real_wires(draw, sound=True):
    """A message of the real table, packed by hand; if not ``sound``, with any bytes for text and padding."""
    layout = SCHEMA[draw(st.sampled_from(TYPES))].layout
    token, signature = draw(st.binary(min_size=1, max_size=12)), draw(st.binary(max_size=12))
    parts = [bytes((5, layout.type)), draw(st.binary(min_size=16, max_size=16)), lv(token), lv(signature)]
    for _, kind in layout.body:
        if kind <= 2:
            width = (1, 4, 8)[kind]
            parts.append(draw(st.binary(min_size=width, max_size=width)))
        elif kind == 3:
            parts.append(lv(draw(st.binary(max_size=12))))
        else:
            content = draw(good_values[5]).encode() if sound else draw(odd_text)
            parts.append(lv(content + (b"\0" if kind == 5 else b"")))
    padding = bytes(layout.padding) if sound else bytes(draw(st.sampled_from([0, 1])) for _ in range(layout.padding))
    return b"".join([*parts, padding])


def lv(content):
    return len(content).to_bytes(2, "big") + content


@st.composite
def mutated_wires(draw):
    """A message of the real table with a few bytes changed, put in, taken out, or cut off."""
    wire = bytearray(draw(real_wires()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(wire) - 1)))
        match draw(st.sampled_from(["change", "insert", "delete", "cut", "grow"])):
            case "change" if wire:
                wire[at] = draw(st.sampled_from([0, 1, 2, 0x80, 0xFF, wire[at] ^ 1]))
            case "insert":
                wire[at:at] = draw(st.binary(min_size=1, max_size=3))
            case "delete" if wire:
                del wire[at]
            case "cut":
                del wire[at:]
            case "grow":
                wire += draw(st.binary(max_size=300))
    return bytes(wire)


@pytest.fixture(scope="session")
def schemas(twins):
    """The real table on each twin."""
    return {id(twin): twin.schema() for twin in twins}


# --- records


@given(layouts_and_values(), st.data())
def test_good_records(twins, drawn, data):
    layout, values = drawn
    values = dict(data.draw(st.permutations(sorted(values.items()))))

    def call(twin):
        record_class, schema = bind(twin, layout)
        made = outcome(record_class, **values)
        if isinstance(made[0], type):
            return made
        record = record_class(**values)
        signed = twin.codec.pack(record)
        wire = twin.codec.splice(signed, b"signature")
        return made, signed, wire, outcome(schema.decode, wire), outcome(schema.peek, wire)

    result = agree(twins, call)
    if values["token"] and not any(has_surrogate(value) for value in values.values()):
        assert result[3][3] == result[0]  # decoding gives back what was encoded


def has_surrogate(value):
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


@given(layouts(), st.data())
def test_values_of_any_type_in_any_field(twins, layout, data):
    values = {name: data.draw(st.one_of(good_values[kind], any_value), name) for name, kind in kinds(layout)}
    agree(twins, lambda twin: outcome(bind(twin, layout)[0], **values))


@given(layouts_and_values(), st.data())
def test_missing_and_unknown_names(twins, drawn, data):
    """Wrong values beside them must not change which of the two errors comes."""
    layout, values = drawn
    values = {name: data.draw(st.one_of(st.just(value), any_value), name) for name, value in values.items()}
    unknown = data.draw(st.lists(st.sampled_from(["self", "cls", "fields", "tokens", "x"]), unique=True, max_size=3))
    for name in data.draw(st.permutations(sorted(values)))[: data.draw(st.sampled_from([len(unknown), 0, 1]))]:
        del values[name]
    values |= dict.fromkeys(unknown, 0)
    agree(twins, lambda twin: outcome(bind(twin, layout)[0], **values))


@given(layouts_and_values(), st.data())
def test_records_that_are_filled_again(twins, drawn, data):
    """By their own constructor, called once more: what is refused changes nothing."""
    layout, values = drawn
    others = {name: data.draw(st.one_of(st.just(value), any_value), name) for name, value in values.items()}

    def call(twin):
        record_class, _ = bind(twin, layout)
        made = outcome(record_class, **values)
        if isinstance(made[0], type):
            return made
        record = record_class(**values)
        again = outcome(record.__init__, **others)
        return again, twin.codec.pack(record), shown(record), hash(record)

    agree(twins, call)


class Name(str):
    """A name that is no str but equals one."""

    __slots__ = ()


@given(layouts_and_values(), st.integers(1, 3))
def test_unnamed_values_and_odd_names(twins, drawn, count):
    layout, values = drawn
    agree(twins, lambda twin: outcome(bind(twin, layout)[0], *range(count), **values))
    agree(twins, lambda twin: outcome(bind(twin, layout)[0], *range(count)))
    agree(twins, lambda twin: outcome(bind(twin, layout)[0]))
    agree(twins, lambda twin: outcome(bind(twin, layout)[0], **{Name(name): value for name, value in values.items()}))


@given(st.data())
def test_layouts_of_any_shape(twins, data):
    small = st.integers(-2, 10)
    arguments = (
        data.draw(st.integers(-2, 258)),
        "R",
        data.draw(st.lists(st.tuples(names, st.integers(-1, 7)), max_size=10)),
        data.draw(small),
    )

    def call(twin):
        made = outcome(twin.codec.Layout, *arguments)
        if made[0] is ValueError:
            return made
        layout = twin.codec.Layout(*arguments)
        return layout.type, layout.name, layout.body, layout.fields, layout.names, layout.padding

    agree(twins, call)


@given(
    st.one_of(st.binary(max_size=60), st.none(), st.text(max_size=3)), st.one_of(st.binary(max_size=60), st.integers())
)
@example(bytes(18) + b"\xff\xff" + bytes(65492), b"")
@example(bytes(20), bytes(65514))
@example(bytes(20), bytes(65513))
@example(bytes(20), bytes(70000))
def test_splice(twins, signed, signature):
    agree(twins, lambda twin: outcome(twin.codec.splice, signed, signature))


# --- received bytes


@given(mutated_wires())
def test_mutated_messages(twins, schemas, wire):
    agree(twins, lambda twin: (outcome(schemas[id(twin)].decode, wire), outcome(schemas[id(twin)].peek, wire)))


@given(real_wires())
def test_whole_messages_are_taken_by_both(twins, schemas, wire):
    result = agree(twins, lambda twin: outcome(schemas[id(twin)].decode, wire))
    assert result[1] == 5


@given(real_wires(sound=False))
def test_odd_text_and_padding(twins, schemas, wire):
    agree(twins, lambda twin: outcome(schemas[id(twin)].decode, wire))


@given(st.binary(max_size=400))
@example(bytes(65535))
@example(bytes(65536))
def test_random_bytes(twins, schemas, wire):
    agree(twins, lambda twin: (outcome(schemas[id(twin)].decode, wire), outcome(schemas[id(twin)].peek, wire)))


@given(st.integers(0, 255), st.binary(max_size=400))
def test_random_bytes_behind_a_version(twins, schemas, code, rest):
    wire = bytes((5, code)) + rest
    agree(twins, lambda twin: (outcome(schemas[id(twin)].decode, wire), outcome(schemas[id(twin)].peek, wire)))


@given(st.sampled_from(TYPES), st.binary(max_size=200))
def test_random_bodies_behind_a_good_header(twins, schemas, code, rest):
    wire = bytes((5, code)) + bytes(16) + b"\0\1t\0\1s" + rest
    agree(twins, lambda twin: outcome(schemas[id(twin)].decode, wire))


@given(any_value)
def test_anything_but_bytes(twins, schemas, junk):
    agree(twins, lambda twin: (outcome(schemas[id(twin)].decode, junk), outcome(schemas[id(twin)].peek, junk)))
    agree(twins, lambda twin: outcome(twin.codec.pack, junk))


@given(layouts(), st.binary(max_size=120))
def test_random_bodies_of_random_layouts(twins, layout, rest):
    wire = bytes((5, layout[0])) + bytes(16) + b"\0\1t\0\1s" + rest
    agree(twins, lambda twin: outcome(bind(twin, layout)[1].decode, wire))


# --- signatures


@pytest.fixture(scope="session")
def public_keys(twins, scheme_keys):
    """The public key of each scheme on each twin."""
    return {(id(twin), scheme): twin.public_key(key) for twin in twins for scheme, key in scheme_keys.items()}


def verdicts(twins, public_keys, scheme, *call):
    return agree(twins, lambda twin: outcome(public_keys[id(twin), scheme].verifier.verify, *call))


SCHEME = st.sampled_from(["rsa2048", "p256", "ed25519"])


@given(SCHEME, st.binary(max_size=100), st.binary(max_size=300), st.binary(max_size=100))
def test_random_signatures(twins, public_keys, scheme, head, signature, tail):
    wire = head + b"\0\0" + signature + tail
    assert verdicts(twins, public_keys, scheme, wire, len(head) + 2, len(signature)) == (bool, False)


@given(SCHEME, st.binary(max_size=50), st.integers(0, 300), st.integers(0, 255), st.integers(-2, 2))
def test_mutated_signatures(twins, public_keys, scheme_keys, scheme, signed, at, value, grow):
    """ECDSA has many encodings that a lax reader takes; OpenSSL's two editions must refuse the same ones."""
    signature = scheme_keys[scheme].sign(signed)
    assert verdicts(twins, public_keys, scheme, b"\0\0" + signature + signed, 2, len(signature)) == (bool, True)
    at %= len(signature)
    changed = signature[:at] + bytes([value]) + signature[at + 1 :]
    changed = changed[:grow] if grow < 0 else changed + bytes(grow)
    expected = changed == signature
    assert verdicts(twins, public_keys, scheme, b"\0\0" + changed + signed, 2, len(changed)) == (bool, expected)


@given(SCHEME, st.binary(max_size=30), st.integers(-5, 40), st.integers(-5, 40))
def test_places_of_the_signature(twins, public_keys, scheme, wire, offset, size):
    kind, *_ = verdicts(twins, public_keys, scheme, wire, offset, size)
    inside = offset >= 2 and size >= 0 and offset + size <= len(wire)
    assert kind is (bool if inside else ValueError)


@given(any_value)
def test_verifiers_and_signers_take_bytes_only(twins, public_keys, scheme_keys, junk):
    if type(junk) is bytes:
        junk = bytearray(junk)
    for scheme in scheme_keys:
        assert verdicts(twins, public_keys, scheme, junk, 2, 0)[0] is TypeError
        assert (
            agree(twins, lambda twin, scheme=scheme: outcome(twin_signer(twin, scheme_keys, scheme).sign, junk))[0]
            is TypeError
        )


SIGNERS = {}


def twin_signer(twin, scheme_keys, scheme):
    if (id(twin), scheme) not in SIGNERS:
        SIGNERS[id(twin), scheme] = twin.signer(scheme_keys[scheme])
    return SIGNERS[id(twin), scheme]


def test_each_twin_takes_what_the_other_signs(twins, public_keys, scheme_keys):
    for scheme in scheme_keys:
        for signer in twins:
            signature = twin_signer(signer, scheme_keys, scheme).sign(b"signed bytes")
            assert type(signature) is bytes
            call = (b"\0\0" + signature + b"signed bytes", 2, len(signature))
            assert verdicts(twins, public_keys, scheme, *call) == (bool, True)


@pytest.mark.parametrize("algorithm", ["rsa", "ecdsa", "ed25519", "mldsa", "dsa", ""])
def test_keys_that_do_not_load_or_fit(twins, scheme_keys, algorithm):
    from cryptography.hazmat.primitives import serialization as s

    ders = [b"", b"junk", bytes(300), None, "text"]
    for key in scheme_keys.values():
        private = s.load_pem_private_key(key.to_pem(), None)
        der = private.public_key().public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)
        for encryption in (s.NoEncryption(), s.BestAvailableEncryption(b"password")):
            secret = private.private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, encryption)
            ders += [secret, secret + b"\0", secret[:-1]]
        ders += [der, der + b"\0", der[:-1]]

    def call(twin):
        made = []
        for make in (twin.verify.verifier, twin.verify.signer):
            results = [outcome(make, algorithm, der) for der in ders]
            made += [result if issubclass(result[0], Exception) else "a key" for result in results]
        return made

    results = agree(twins, call)
    fitting = sum(scheme_algorithm(scheme) == algorithm for scheme in scheme_keys)
    assert results.count("a key") == 2 * fitting  # each public key for the verifier, each plain private one to sign


def scheme_algorithm(scheme):
    from srup.keys import SCHEMES

    return SCHEMES[scheme].algorithm

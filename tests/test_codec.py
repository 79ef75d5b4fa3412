"""Bytes to frames and back on both twins: what a strict reader takes, what it refuses, nothing else."""

import copy
import gc
import operator
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from types import SimpleNamespace

import pytest

import srup
from srup.errors import DecodeError, EncodeError, SignatureError, SrupError, UnknownSenderError
from srup.messages import SCHEMA

pytestmark = pytest.mark.backend

TYPES = [message.layout.type for message in SCHEMA[:]]
NAMES = [message.__name__ for message in SCHEMA[:]]
SAMPLES = {
    0: 0x7F,
    1: 0x01020304,
    2: 0x0102030405060708,
    3: b"\x00bytes\xff",
    4: "täxt",
    5: "https://e.example/\N{SNOWMAN}",
}
SIGNATURE = bytes(range(64))

ANYONE = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: True))
"""A key that takes every signature: what is behind the guard, seen without it."""

NOBODY = SimpleNamespace(verifier=SimpleNamespace(verify=lambda wire, offset, size: False))


def sample(record):
    """A record of any class with a value in every field."""
    return record(**{name: SAMPLES[kind] for name, kind in record.layout.fields})


def wire_of(twin, record):
    return twin.codec.splice(twin.codec.pack(record), SIGNATURE)


def lengths_of(layout, wire):
    """The offset of every length field of a well-formed message."""
    offset = 18
    found = []
    for kind in [3, 3, *(kind for _, kind in layout.body)]:
        if kind <= 2:
            offset += (1, 4, 8)[kind]
        else:
            found.append(offset)
            offset += 2 + int.from_bytes(wire[offset : offset + 2], "big")
    assert offset + layout.padding == len(wire)
    return found


def refusal(schema, wire):
    """The DecodeError that a message gets."""
    with pytest.raises(DecodeError) as caught:
        schema.decode(wire)
    return caught.value


@pytest.fixture(params=TYPES, ids=NAMES)
def record(request, schema):
    """A record of every type in turn, on the twin in turn."""
    return sample(schema[request.param])


def test_the_public_decode_is_the_schemas_own(schema):
    assert srup.decode == SCHEMA.decode
    assert "DecodeError" in srup.decode.__doc__
    wire = b"\5\3" + bytes(16) + b"\0\1t\0\1s"
    assert (schema.decode(wire=wire).token, srup.decode(wire=wire).token) == (b"t", b"t")


# --- form


def test_round_trip(twin, schema, record):
    frame = schema.decode(wire_of(twin, record))
    assert (frame.version, frame.type) == (5, record.layout.type)
    assert (frame.sequence_id, frame.sender_id, frame.token) == (record.sequence_id, record.sender_id, record.token)
    assert frame.verify(ANYONE) == record
    assert type(frame.verify(ANYONE)) is type(record)


def test_every_truncation_is_refused(twin, schema, record):
    wire = wire_of(twin, record)
    for size in range(len(wire)):
        error = refusal(schema, wire[:size])
        assert 0 <= error.offset <= size


def test_every_change_of_a_length_byte_is_refused_or_moves_bytes_only(twin, schema, record):
    """A longer or shorter token, say, must shift what follows: no reading of such a message has the old signature."""
    wire = wire_of(twin, record)
    taken = []
    for start in lengths_of(record.layout, wire):
        for offset in (start, start + 1):
            for value in set(range(256)) - {wire[offset]}:
                changed = wire[:offset] + bytes([value]) + wire[offset + 1 :]
                try:
                    taken.append(schema.decode(changed))
                except DecodeError as error:
                    assert error.offset <= len(changed)  # noqa: PT017 - taking it is an outcome, too
    for frame in taken:
        seen = []
        key = SimpleNamespace(verifier=SimpleNamespace(verify=lambda *call, seen=seen: seen.append(call)))
        with pytest.raises(SignatureError):
            frame.verify(key)
        changed, offset, size = seen[0]
        signed = changed[: offset - 2] + changed[offset + size :]
        assert (signed, changed[offset : offset + size]) != (twin.codec.pack(record), SIGNATURE)


@pytest.mark.parametrize("extra", [b"\0", b"\xff", bytes(7), bytes(60000)], ids=["nul", "ff", "seven", "60000"])
def test_trailing_bytes_are_refused(twin, schema, record, extra):
    wire = wire_of(twin, record)
    error = refusal(schema, wire + extra)
    assert (error.field, error.offset) == ("message", len(wire))


def test_zeros_are_refused(schema):
    for size in (0, 1, 2, 22, 65535):
        assert refusal(schema, bytes(size)).field == "version"
    assert refusal(schema, bytes(65536)).field == "message"
    for code in TYPES:  # 64 KB of zeros behind a good start
        assert refusal(schema, bytes([5, code]) + bytes(65533)).field == "token"
        assert refusal(schema, bytes([5, code]) + bytes(16) + b"\0\x01x" + bytes(65514)).field == "message"


def test_65535_bytes_are_taken_and_one_more_is_not(twin, schema):
    activate = schema[3]
    record = activate(sequence_id=1, sender_id=2, token=b"t" * (65535 - 22 - 64))
    wire = wire_of(twin, record)
    assert len(wire) == 65535
    assert schema.decode(wire).verify(ANYONE) == record
    assert str(refusal(schema, wire + b"\0")) == "message at offset 65535: longer than 65535 bytes"
    longer = twin.codec.pack(activate(sequence_id=1, sender_id=2, token=record.token + b"t"))
    with pytest.raises(EncodeError, match=r"^message: 65536 bytes are more than the 65535 that are possible$"):
        twin.codec.splice(longer, SIGNATURE)


@pytest.mark.parametrize("version", [0, 1, 4, 6, 255])
def test_other_versions_are_refused(twin, schema, version):
    wire = bytes([version]) + wire_of(twin, sample(schema[3]))[1:]
    assert refusal(schema, wire).args == ("version", 0, f"{version}, expected 5")
    with pytest.raises(DecodeError, match=r"version at offset 0"):
        schema.peek(wire)


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(TYPES)))
def test_unknown_types_are_refused(twin, schema, code):
    """With what used to be group messages (0x07, 0x08, 0x14) and Generic (0x00), which is never sent."""
    wire = bytes([5, code]) + wire_of(twin, sample(schema[3]))[2:]
    assert refusal(schema, wire).args == ("type", 1, f"0x{code:02X} is not known")


@pytest.mark.parametrize(
    "wire", [None, "text", bytearray(b"\5\3"), memoryview(b"\5\3"), 5, [5, 3]], ids=lambda value: type(value).__name__
)
def test_only_bytes_are_decoded(schema, wire):
    for read in (schema.decode, schema.peek):
        with pytest.raises(DecodeError, match=rf"^message at offset 0: expected bytes, not {type(wire).__name__}$"):
            read(wire)


def test_an_empty_token_is_refused(schema):
    assert refusal(schema, b"\5\3" + bytes(16) + b"\0\0" + b"\0\1s").args == ("token", 20, "is empty")


@pytest.mark.parametrize("padding", [b"\1\0", b"\0\1", b"\xff\xff"], ids=bytes.hex)
def test_padding_must_be_zero(twin, schema, padding):
    wire = wire_of(twin, sample(schema[0x2C]))
    assert refusal(schema, wire[:-2] + padding).args == ("padding", len(wire) - 2, "is not zero")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\0b\0", "a NUL inside the text"),
        (b"a\0\0", "a NUL inside the text"),
        (b"\xff\0", "not UTF-8"),
        (b"\xed\xa0\x80\0", "not UTF-8"),  # a surrogate
        (b"\xc0\x80", "not UTF-8"),  # an overlong NUL
        (b"\xf4\x90\x80\x80", "not UTF-8"),  # beyond Unicode
        (b"\xe2\x82", "not UTF-8"),  # cut short
    ],
)
def test_bad_text_is_refused(schema, content, reason):
    head = b"\5\1" + bytes(16) + b"\0\1t" + b"\0\1s"
    wire = head + len(content).to_bytes(2, "big") + content + b"\0\1\0"
    assert refusal(schema, wire).args == ("url", len(head) + 2, reason)


@pytest.mark.parametrize(
    ("content", "text"), [(b"", ""), (b"\0", ""), (b"u", "u"), (b"u\0", "u"), ("ü".encode() + b"\0", "ü")]
)
def test_the_trailing_nul_is_taken_off_and_may_be_absent(schema, content, text):
    wire = b"\5\1" + bytes(16) + b"\0\1t" + b"\0\1s" + len(content).to_bytes(2, "big") + content + b"\0\0"
    assert schema.decode(wire).verify(ANYONE).url == text


def test_peek_takes_a_generic_that_decode_refuses(schema):
    generic = b"\5\0" + (7).to_bytes(8, "little") + (0x51).to_bytes(8, "little") + b"\0\5token"
    header = schema.peek(generic)
    assert header == (5, 0, 7, 0x51, b"token")
    assert (header.type, header.sequence_id, header.sender_id, header.token) == (0, 7, 0x51, b"token")
    assert refusal(schema, generic).field == "type"
    with pytest.raises(DecodeError, match=r"message at offset 25: 1 bytes left over"):
        schema.peek(generic + b"\0")


def test_peek_looks_at_nothing_behind_the_token(twin, schema, record):
    wire = wire_of(twin, record)
    cut = 20 + len(record.token)
    whole = (5, record.layout.type, record.sequence_id, record.sender_id, record.token)
    assert schema.peek(wire[:cut]) == schema.peek(wire) == schema.peek(wire[:cut] + b"\xff" * 9) == whole
    for size in range(cut):
        with pytest.raises(DecodeError):
            schema.peek(wire[:size])


# --- frames


def test_verify_gives_the_body_to_its_key_only(twin, schema, record):
    wire = wire_of(twin, record)
    frame = schema.decode(wire)
    text = f"{record.layout.name} {record.sequence_id} of sender {record.sender_id:x} is not signed by its key"
    with pytest.raises(SignatureError) as caught:
        frame.verify(NOBODY)
    assert str(caught.value) == text
    assert frame.verify(ANYONE) == record  # the frame is none the worse for it


def test_the_verifier_gets_the_place_of_the_signature(twin, schema, record):
    wire = wire_of(twin, record)
    calls = []
    with pytest.raises(SignatureError):
        schema.decode(wire).verify(SimpleNamespace(verifier=SimpleNamespace(verify=lambda *call: calls.append(call))))
    assert calls == [(wire, 22 + len(record.token), len(SIGNATURE))]


@pytest.mark.parametrize("junk", [None, 5, b"key", object], ids=repr)
def test_verify_takes_a_public_key(twin, schema, junk):
    frame = schema.decode(wire_of(twin, sample(schema[3])))
    with pytest.raises(TypeError, match=r"^verify\(\) takes a PublicKey, not "):
        frame.verify(junk)


def test_a_frame_has_no_public_way_to_its_body(twin, schema):
    frame = schema.decode(wire_of(twin, sample(schema[1])))
    public = {name for name in dir(frame) if not name.startswith("_")}
    assert public == {"version", "type", "sequence_id", "sender_id", "token", "verify"}
    assert "example" not in repr(frame)
    assert repr(frame).startswith("<unverified Initiate sequence_id=72623859790382856 sender_id=102030405060708 token=")


def test_a_frame_cannot_be_made_changed_or_forged(twin, schema):
    frame = schema.decode(wire_of(twin, sample(schema[4])))
    with pytest.raises(TypeError, match=r"^frames are made by decode\(\)$"):
        twin.codec.Frame()
    for name in ("version", "type", "sequence_id", "sender_id", "token"):
        with pytest.raises(AttributeError):
            setattr(frame, name, 1)
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^a frame is not copied or pickled; decode its bytes again$"):
            make(frame)
    assert not [name for name in dir(frame) if name.startswith("__setstate")]


def test_a_frame_out_of_nothing_is_harmless(twin):
    frame = twin.codec.Frame.__new__(twin.codec.Frame)
    for name in ("type", "sequence_id", "sender_id", "token"):
        with pytest.raises((TypeError, AttributeError)):
            getattr(frame, name)
    with pytest.raises((TypeError, AttributeError)):
        frame.verify(ANYONE)
    with pytest.raises((TypeError, AttributeError)):
        repr(frame)


def test_frames_outlive_what_they_were_made_of(twin):
    schema = twin.schema()
    record = sample(schema[5])
    frames = [schema.decode(wire_of(twin, record)) for _ in range(1000)]
    text = repr(record)
    del schema, record
    gc.collect()
    assert {repr(frame.verify(ANYONE)) for frame in frames} == {text}


# --- records


def test_equality_and_hash(schema, record):
    same = type(record)(**dict(record))
    assert record == same
    assert hash(record) == hash(same)
    assert len({record, same}) == 1
    assert record != type(record)(**{**dict(record), "sequence_id": 1})
    assert record != tuple(dict(record).values())
    assert record.__eq__(None) is NotImplemented


def test_records_of_other_types_differ_with_equal_values(schema):
    fields = {"sequence_id": 1, "sender_id": 2, "token": b"t"}
    records = {schema[code](**fields) for code in (0x03, 0x06, 0x09, 0x10)}
    assert len(records) == 4


def test_repr_and_iteration(schema):
    record = schema[4](sequence_id=7, sender_id=0x51, token=b"a-token", action_id=3)
    assert repr(record) == "Action(sequence_id=7, sender_id=81, token=b'a-token', action_id=3)"
    assert list(record) == [("sequence_id", 7), ("sender_id", 0x51), ("token", b"a-token"), ("action_id", 3)]


def test_records_are_immutable(twin, schema, record):
    before = twin.codec.pack(record)
    for name, value in record:
        with pytest.raises(AttributeError, match=rf"^{record.layout.name} is immutable: cannot set {name}$"):
            setattr(record, name, value)
        with pytest.raises(AttributeError, match=rf"^{record.layout.name} is immutable: cannot delete {name}$"):
            delattr(record, name)
        with pytest.raises((AttributeError, TypeError)):
            object.__setattr__(record, name, value)
        if hasattr(record, "__dict__"):
            vars(record)[name] = "shadow"
            assert getattr(record, name) == value
    with pytest.raises(AttributeError):
        record.unknown = 1
    assert twin.codec.pack(record) == before


def test_messages_are_copied_and_pickled():
    for message in (sample(message) for message in SCHEMA[:]):
        for other in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
            assert other == message
            assert type(other) is type(message)
            assert repr(other) == repr(message)


def test_a_forged_pickle_is_checked_like_any_value():
    message = sample(srup.Action)
    restore, (values,) = message.__reduce__()
    with pytest.raises(EncodeError, match=r"action_id: 300 is outside"):
        restore((*values[:3], 300))
    with pytest.raises(ValueError, match=r"zip"):
        restore(values[:2])


def test_a_record_out_of_nothing_is_harmless(twin, schema):
    record = schema[4].__new__(schema[4])
    for use in (lambda: record.token, lambda: twin.codec.pack(record), lambda: repr(record), lambda: list(record)):
        with pytest.raises((TypeError, AttributeError)):
            use()
    with pytest.raises((TypeError, AttributeError)):
        copy.copy(record)
    with pytest.raises(TypeError, match=r"^the record has no values$"):
        twin.codec.pack(record)


def test_field_descriptors_refuse_foreign_objects(twin, schema):
    field = vars(schema[4])["action_id"]
    assert schema[4].action_id is field
    for foreign in (5, object(), "x", schema, schema.decode(wire_of(twin, sample(schema[4])))):
        with pytest.raises((TypeError, AttributeError)):
            field.__get__(foreign, None)
    short = sample(schema[3])
    with pytest.raises((TypeError, AttributeError, IndexError)):
        field.__get__(short, type(short))


def test_records_keep_their_values_alive_and_give_them_back(schema):
    """Filled by a constructor, filled again, refused, opened from bytes, dropped: no reference is lost or left over."""
    token, text = bytes(bytearray(b"a token of this test")), "".join(["a text", " of this test"])
    fields = {"sequence_id": 2**60 + 1, "sender_id": 2**61 + 1, "token": token}
    before = sys.getrefcount(token), sys.getrefcount(text)
    for _ in range(3):
        record = schema[0x05](**fields, data_id=text, data=token)
        record.__init__(**fields, data_id=text, data=b"")
        with pytest.raises(EncodeError):
            record.__init__(**fields, data_id=5, data=token)
        with pytest.raises(EncodeError):
            schema[0x05](**fields, data_id=text, data=text)
        with pytest.raises(TypeError):
            schema[0x05](**fields, data_id=text, other=token)
        assert (record.token, record.data_id, record.data) == (token, text, b"")
        assert sys.getrefcount(token) == before[0] + 1
        del record
    gc.collect()
    assert (sys.getrefcount(token), sys.getrefcount(text)) == before


def test_a_class_whose_new_makes_the_same_record_again(twin):
    codec = twin.codec
    kept = []
    made = lambda cls: kept[0] if kept else codec.Record.__new__(cls)  # noqa: E731
    record_class = type("Same", (codec.Record,), {"__new__": lambda cls, **fields: made(cls)})
    record_class.bind(codec.Layout(9, "Same", (("a", codec.BINARY), ("b", codec.TEXT))))
    token = bytes(bytearray(b"a token of this test"))
    before = sys.getrefcount(token)
    kept.append(record_class(sequence_id=1, sender_id=2, token=token, a=token, b="b"))
    schema = codec.Schema()
    schema.add(record_class)
    record_class.bind(codec.Layout(10, "Same", ()))
    assert record_class(sequence_id=3, sender_id=4, token=b"t") is kept[0]
    assert dict(kept[0]) == {"sequence_id": 3, "sender_id": 4, "token": b"t"}
    assert sys.getrefcount(token) == before


def test_a_class_with_a_constructor_of_its_own(twin):
    codec = twin.codec

    class Named(codec.Record):
        def __init__(self, token):
            super().__init__(sequence_id=1, sender_id=2, token=token)

    Named.bind(codec.Layout(9, "Named", ()))
    assert Named(b"t").token == b"t"


def test_pack_takes_records_only(twin, schema):
    for junk in (None, 5, b"record", schema[4]):
        with pytest.raises(TypeError, match=rf"^pack\(\) takes a record, not {type(junk).__name__}$"):
            twin.codec.pack(junk)


def test_rebinding_a_class_cannot_make_pack_read_past_a_value(twin):
    codec = twin.codec
    record_class = type("R", (codec.Record,), {})
    record_class.bind(codec.Layout(1, "R", (("a", codec.U64),)))
    record = record_class(sequence_id=1, sender_id=1, token=b"t", a=2**63)
    for kind in (codec.BINARY, codec.TEXT, codec.TEXTZ):
        record_class.bind(codec.Layout(1, "R", (("a", kind),)))
        with pytest.raises((TypeError, AttributeError)):
            codec.pack(record)
    record_class.bind(codec.Layout(1, "R", ()))
    with pytest.raises(TypeError):
        codec.pack(record)


@pytest.mark.parametrize("junk", [None, "s", bytearray(b"s"), 1], ids=repr)
def test_splice_takes_bytes_only(twin, junk):
    signed = b"\5\3" + bytes(16) + b"\0\1t"
    for arguments in ((junk, b""), (signed, junk)):
        with pytest.raises(TypeError, match=r"^splice\(\) takes bytes, not "):
            twin.codec.splice(*arguments)


@pytest.mark.parametrize("signed", [b"", bytes(19), bytes(18) + b"\0\1", bytes(18) + b"\xff\xff" + bytes(100)])
def test_splice_takes_signed_bytes_only(twin, signed):
    with pytest.raises(ValueError, match=r"^these are no signed bytes$"):
        twin.codec.splice(signed, b"")


# --- layouts and schemas


@pytest.mark.parametrize(
    "arguments",
    [
        (0, "R", ()),
        (256, "R", ()),
        (-1, "R", ()),
        (1, "R", (), -1),
        (1, "R", (), 9),
        (1, "R", tuple((f"f{i}", 0) for i in range(9))),
        (1, "R", (("a", 6),)),
        (1, "R", (("a", -1),)),
    ],
    ids=repr,
)
def test_impossible_layouts_are_refused(twin, arguments):
    with pytest.raises(ValueError, match=r"^R: "):
        twin.codec.Layout(*arguments)


def test_a_layout_counts_the_fields_that_it_keeps(twin):
    """A container that lies about its length must not get more fields in than there is room for."""

    class Liar(list):
        def __len__(self):
            return 1

    with pytest.raises(ValueError, match=r"at most 8 fields"):
        twin.codec.Layout(1, "R", iter([(f"f{number}", 0) for number in range(1000)]))
    with pytest.raises(ValueError, match=r"at most 8 fields"):
        twin.codec.Layout(
            1, "R", type("Gen", (), {"__len__": lambda s: 1, "__iter__": lambda s: iter([("f", 0)] * 99)})()
        )
    assert len(twin.codec.Layout(1, "R", Liar([("a", 0)])).body) == 1


def test_the_widest_layout_round_trips(twin):
    codec = twin.codec
    kinds = (codec.U8, codec.U32, codec.U64, codec.BINARY, codec.TEXT, codec.TEXTZ, codec.BINARY, codec.U8)
    record_class = type("Wide", (codec.Record,), {})
    record_class.bind(codec.Layout(255, "Wide", tuple((f"f{i}", kind) for i, kind in enumerate(kinds)), 8))
    schema = codec.Schema()
    schema.add(record_class)
    record = sample(record_class)
    wire = wire_of(twin, record)
    assert wire.endswith(b"\x7f" + bytes(8))
    assert schema.decode(wire).verify(ANYONE) == record
    for size in range(len(wire)):
        refusal(schema, wire[:size])


def test_a_type_is_taken_once(twin, schema):
    with pytest.raises(ValueError, match=r"^type 0x04 is taken$"):
        schema.add(schema[4])
    fresh = twin.codec.Schema()
    fresh.add(schema[4])
    assert fresh[:] == [schema[4]]


def test_only_record_classes_are_added(twin):
    layout = twin.codec.Layout(1, "R", ())
    with pytest.raises(TypeError, match=r"is no record class$"):
        twin.codec.Schema().add(type("R", (), {"layout": layout}))
    with pytest.raises((TypeError, AttributeError)):
        twin.codec.Schema().add(5)


@pytest.mark.parametrize("code", [0, 7, 256, -1, 10**30])
def test_a_schema_knows_its_types(schema, code):
    with pytest.raises(KeyError):
        schema[code]
    assert [record.layout.type for record in schema[:]] == sorted(TYPES)


def test_a_class_whose_new_makes_something_else_cannot_forge_a_record(twin):
    codec = twin.codec
    record_class = type("Odd", (codec.Record,), {"__new__": lambda cls: [1, 2, 3]})
    record_class.bind(codec.Layout(9, "Odd", ()))
    schema = codec.Schema()
    schema.add(record_class)
    frame = schema.decode(b"\5\x09" + bytes(16) + b"\0\1t\0\1s")
    with pytest.raises((TypeError, AttributeError)):
        frame.verify(ANYONE)


def test_subclasses_of_a_record_are_their_own_type(twin, schema):
    child = type("Child", (schema[4],), {})
    record = child(sequence_id=1, sender_id=2, token=b"t", action_id=3)
    assert record.action_id == 3
    assert record != schema[4](**dict(record))
    assert twin.codec.pack(record) == twin.codec.pack(schema[4](**dict(record)))


# --- srup.encode, srup.decode, srup.verify_many


def test_encode_and_verify_with_every_scheme(key):
    for message in (sample(message) for message in SCHEMA[:]):
        wire = srup.encode(message, key)
        assert srup.decode(wire).verify(key.public_key) == message


def test_encode_needs_a_message_and_a_private_key(key):
    with pytest.raises(TypeError, match=r"^encode\(\) takes a message, not bytes$"):
        srup.encode(b"message", key)
    with pytest.raises(TypeError, match=r"^encode\(\) takes a PrivateKey, not PublicKey$"):
        srup.encode(sample(srup.Action), key.public_key)


def test_the_longest_message_of_rsa2048(vector_keys):
    """docs/protocol/wire-format.md#w-4: the longest token an RSA-2048 Activate can carry is 65,257 bytes."""
    key = vector_keys["A2048"]
    message = srup.Activate(sequence_id=1, sender_id=2, token=b"t" * 65257)
    wire = srup.encode(message, key)
    assert len(wire) == 65535
    assert srup.decode(wire).verify(key.public_key) == message
    with pytest.raises(EncodeError, match=r"^message: 65536 bytes"):
        srup.encode(srup.Activate(sequence_id=1, sender_id=2, token=b"t" * 65258), key)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_verify_many_answers_in_order(vector_keys, threads):
    good, other = vector_keys["A2048"], vector_keys["B2048"]
    message = sample(srup.Action)
    stranger = srup.Action(**{**dict(message), "sender_id": 99})
    wires = [srup.encode(message, good), b"junk", srup.encode(message, other), srup.encode(stranger, good), None] * 20
    keyring = srup.KeyRing({message.sender_id: good.public_key})
    results = srup.verify_many(wires, keyring, threads=threads)
    assert results[::5] == [message] * 20
    kinds = [DecodeError, SignatureError, UnknownSenderError, DecodeError]
    assert [type(result) for result in results if isinstance(result, SrupError)] == kinds * 20
    assert results[3].sender_id == 99
    assert [str(result) for result in results] == [str(result) for result in srup.verify_many(wires, dict(keyring))]


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, None, "2"], ids=repr)
def test_verify_many_refuses_other_thread_counts(threads):
    with pytest.raises(ValueError, match=r"^threads must be an int of at least 1, not "):
        srup.verify_many([], {}, threads=threads)


def test_verify_many_of_nothing():
    assert srup.verify_many([], {}) == srup.verify_many([], {}, threads=4) == []


def test_one_key_verifies_from_eight_threads_at_once(key):
    """Good and bad signatures mixed: threads that shared a context would mix up their verdicts."""
    messages = [srup.Action(sequence_id=n + 1, sender_id=1, token=b"t", action_id=n % 256) for n in range(40)]
    wires = [srup.encode(message, key) for message in messages]
    wires[1::2] = [wire[:-1] + bytes([wire[-1] ^ 1]) for wire in wires[1::2]]
    expected = [message if index % 2 == 0 else None for index, message in enumerate(messages)]
    barrier = threading.Barrier(8)

    def run(_):
        barrier.wait(30)
        return [result if isinstance(result, srup.Message) else None for result in srup.verify_many(wires * 3, ring)]

    ring = {1: key.public_key}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [expected * 3] * 8


def test_one_key_signs_from_eight_threads_at_once(key):
    messages = [srup.Action(sequence_id=n + 1, sender_id=1, token=b"t", action_id=n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        wires = list(pool.map(srup.encode, messages, [key] * len(messages)))
    assert srup.verify_many(wires, {1: key.public_key}) == messages


class Answer(IntEnum):
    YES = 3


def test_an_int_enum_is_stored_as_the_int(schema):
    record = schema[4](sequence_id=Answer.YES, sender_id=Answer.YES, token=b"t", action_id=Answer.YES)
    assert [type(value) for name, value in record if name != "token"] == [int, int, int]
    assert operator.index(record.action_id) == 3

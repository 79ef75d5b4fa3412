"""Bit for bit what deployed peers send, and nothing else: every entry of vectors/wire-v5.json."""

from contextlib import contextmanager

import pytest

import srup
from srup.errors import DecodeError, SealError, SignatureError
from srup.messages import SCHEMA

pytestmark = pytest.mark.backend

NEGATIVES = [
    *("flip-body", "flip-header", "flip-length", "flip-signature", "flip-token", "replay-edit", "retype"),
    *("signature", "swap-signature", "truncate", "wrong-key"),
]


def fields_of(entry, unhex):
    """The fields of a vector as our message classes take them; peers' ids and texts are bytes there."""
    layout = getattr(srup, entry["message"]).layout
    values = {}
    for name, kind in layout.fields:
        if name == "sealed" and name not in entry["fields"]:
            start, size = entry.get("sealed_at", (0, 0))
            values[name] = unhex(entry["wire"])[start : start + size]
        elif kind <= 2:  # an integer
            values[name] = entry["fields"][name]
        else:
            value = unhex(entry["fields"][name])
            values[name] = value if kind == 3 else value.decode()
    return values


def test_the_file_holds_what_the_claims_below_need(vectors):
    assert {entry["type"] for entry in vectors["messages"]} == {message.layout.type for message in SCHEMA[:]}
    assert {entry["message"] for entry in vectors["messages"]} == {message.__name__ for message in SCHEMA[:]}
    assert {entry["category"] for entry in vectors["negatives"]} == set(NEGATIVES)
    assert {len(vectors[name]) > 30 for name in ("messages", "negatives", "quirks", "headers", "sealed")} == {True}


@contextmanager
def about(entry):
    """Say which vector it is that something goes wrong with."""
    try:
        yield entry
    except BaseException as problem:
        problem.add_note(f"vector {entry.get('id') or entry['note']}")
        raise


def test_messages_encode_to_the_same_bytes(message_vectors, vector_keys, unhex):
    for vector in message_vectors:
        with about(vector):
            message = getattr(srup, vector["message"])(**fields_of(vector, unhex))
            assert message.layout.type == vector["type"]
            assert srup.encode(message, vector_keys[vector["key"]]) == unhex(vector["wire"])


def test_messages_decode_to_the_same_fields(message_vectors, vector_keys, unhex):
    for vector in message_vectors:
        with about(vector):
            fields = fields_of(vector, unhex)
            wire = unhex(vector["wire"])
            message = srup.decode(wire).verify(vector_keys[vector["key"]].public_key)
            assert type(message) is getattr(srup, vector["message"])
            assert dict(message) == fields
            assert srup.peek(wire)[1:] == (vector["type"], *list(fields.values())[:3])


def test_messages_on_each_twin(message_vectors, twin, schema, twin_vector_keys, unhex):
    """Layout, signed bytes, signature and splitting of both twins, without the package above them."""
    for vector in message_vectors:
        with about(vector):
            record = schema[vector["type"]](**fields_of(vector, unhex))
            signer, public_key = twin_vector_keys[vector["key"]]
            signed = twin.codec.pack(record)
            wire = twin.codec.splice(signed, signer.sign(signed))
            assert signed == unhex(vector["signed_bytes"])
            assert wire == unhex(vector["wire"])
            assert schema.decode(wire).verify(public_key) == record


def test_typed_data_is_read_and_written_as_peers_do(vectors, vector_keys, unhex):
    entries = [entry for entry in vectors["messages"] if "data_kind" in entry]
    assert len(entries) == 80
    for entry in entries:
        kind, value = entry["data_kind"], entry["data_value"]
        if isinstance(value, str):
            value = float.fromhex(value)
        message = srup.decode(unhex(entry["wire"])).verify(vector_keys[entry["key"]].public_key)
        assert repr(message.decode_value(kind)) == repr(value), entry["id"]  # by repr: -0.0 is not 0.0
        assert message.encode_value(value, kind) == message.data, entry["id"]


def test_negatives_are_refused(negative_vectors, vector_keys, unhex):
    for vector in negative_vectors:
        with about(vector), pytest.raises((DecodeError, SignatureError)):
            srup.decode(unhex(vector["wire"])).verify(vector_keys[vector["key"]].public_key)


@pytest.mark.parametrize("category", NEGATIVES)
def test_negatives_are_refused_by_each_twin(category, vectors, schema, twin_vector_keys, unhex):
    for entry in vectors["negatives"]:
        if entry["category"] == category:
            _, public_key = twin_vector_keys[entry["key"]]
            try:
                schema.decode(unhex(entry["wire"])).verify(public_key)
            except (DecodeError, SignatureError):
                continue
            pytest.fail(f"{entry['id']} was taken: {entry['note']}")


def test_quirks_are_decided_as_written(quirk_vectors, vector_keys, unhex):
    for vector in quirk_vectors:
        wire, key = unhex(vector["wire"]), vector_keys[vector["key"]].public_key
        with about(vector):
            if vector["accept"]:
                message = srup.decode(wire).verify(key)
                assert message.sequence_id == srup.peek(wire).sequence_id
            else:
                with pytest.raises((DecodeError, SignatureError)):
                    srup.decode(wire).verify(key)


def test_headers_alone(header_vectors, unhex):
    for vector in header_vectors:
        wire = unhex(vector["wire"])
        with about(vector):
            if vector["accept"]:
                assert srup.peek(wire).version == 5
            else:
                with pytest.raises(DecodeError):
                    srup.peek(wire)


def test_sealed_fields(sealed_vectors, vector_keys, unhex):
    for vector in sealed_vectors:
        with about(vector):
            message = srup.decode(unhex(vector["wire"])).verify(vector_keys[vector["sign_key"]].public_key)
            assert message.sealed == unhex(vector["sealed"])
            key = vector_keys[vector["seal_key"]]
            if vector["opens"]:
                assert srup.unseal(message.sealed, key) == unhex(vector["plaintext"])
                continue
            try:
                opened = srup.unseal(message.sealed, key)
            except SealError as error:
                assert str(error) == "the sealed value does not open"  # noqa: PT017 - where opens is null either will do
            else:
                assert vector["opens"] is None
                assert isinstance(opened, bytes)


def test_sealed_field_of_a_message(vectors, vector_keys, unhex):
    entries = [entry for entry in vectors["messages"] if "sealed_at" in entry]
    assert len(entries) == 50
    for entry in entries:
        message = srup.decode(unhex(entry["wire"])).verify(vector_keys[entry["key"]].public_key)
        opened = srup.unseal(message.sealed, vector_keys[entry["seal_key"]])
        assert opened == padded(unhex(entry["plaintext"])), entry["id"]


def padded(plaintext):
    """Peers pad with NULs to 32 bytes before they seal."""
    return plaintext.ljust(32, b"\0")

"""Every error of the package, one tree; whoever catches :class:`SrupError` fails closed.

::

    SrupError
    ├── EncodeError          a value of yours does not fit its message field (``field``)
    ├── InvalidKeyError      a key, its file or its password is no good (names the path)
    ├── DecodeError          bytes that are no SRUP message (``field``, ``offset``)
    ├── SignatureError       a message that its sender's key did not sign
    ├── UnknownSenderError   a sender whose key is not registered (``sender_id``)
    ├── ReplayError          a sequence id that was seen before or is too old (``sequence_id``)
    ├── PolicyError          a genuine message that must not take effect here: bound to another
    │                        recipient, expired, from an untrusted server, out of order
    ├── SealError            a sealed value that does not open; one error for every cause
    ├── UnansweredError      a partner did not answer before the time was over
    ├── UpdateError          firmware could not be fetched, checked or activated (``status``)
    ├── TransportError       the broker, the key exchange service, or the link to them
    │   └── MessageTooLargeError   the broker takes no message of this size
    ├── StoreError           durable state that cannot be read, written or trusted
    │   └── LeaseLostError   another worker has taken this partition over
    └── KeyServiceError      what the key exchange service refuses, or must not be believed (``status``, ``field``)
"""

from typing import Final

from srup_native.errors import DecodeError, EncodeError, SignatureError, SrupError

__all__ = [
    "DecodeError",
    "EncodeError",
    "InvalidKeyError",
    "KeyServiceError",
    "LeaseLostError",
    "MessageTooLargeError",
    "PolicyError",
    "ReplayError",
    "SealError",
    "SignatureError",
    "SrupError",
    "StoreError",
    "TransportError",
    "UnansweredError",
    "UnknownSenderError",
    "UpdateError",
]


class InvalidKeyError(SrupError):
    """A key cannot be used: junk, wrong password, an unknown scheme or one that is too weak."""


class UnknownSenderError(SrupError):
    """No key is registered for the identity that a message names as its sender."""

    def __init__(self, sender_id: int) -> None:
        super().__init__(sender_id)
        self.sender_id = sender_id

    def __str__(self) -> str:
        return f"no key is registered for sender {self.sender_id:x}"


class ReplayError(SrupError):
    """A sequence id was accepted before, lies behind the window, or is zero (docs/protocol/flows.md#f-14)."""

    def __init__(self, sequence_id: int, reason: str) -> None:
        super().__init__(sequence_id, reason)
        self.sequence_id = sequence_id
        self.reason = reason

    def __str__(self) -> str:
        return f"sequence id {self.sequence_id} {self.reason}"


class PolicyError(SrupError):
    """A message is genuine and fresh, and still must not take effect here."""


class SealError(SrupError):
    """A sealed value cannot be opened. The error does not say why: that would help an attacker (T13)."""


class UnansweredError(SrupError):
    """A request expired before its answer came; whether it took effect is not known."""


class UpdateError(SrupError):
    """An update failed; ``status`` is the code that the device reports (docs/protocol/flows.md#f-62)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class TransportError(SrupError):
    """The broker, or the key exchange service, cannot be reached or refuses us."""


class MessageTooLargeError(TransportError):
    """The broker takes no message of this size: it has not been sent, or is not sent again."""


class StoreError(SrupError):
    """Durable state cannot be read, written or trusted; nothing was changed, and nothing may be accepted meanwhile."""


class LeaseLostError(StoreError):
    """Another worker has taken this partition over: stop serving it, and change nothing any more."""


class KeyServiceError(SrupError):
    """The key exchange service refuses a request, or its answer, or its folder, is no good.

    ``status`` is the HTTP status of a refusal, 0 where there is none; ``field`` names what is wrong in a request.
    """

    def __init__(self, status: int, field: str, reason: str) -> None:
        super().__init__(status, field, reason)
        self.status = status
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


ADVICE: Final[dict[type[SrupError], tuple[str, str]]] = {
    SrupError: (
        "It is not raised itself: what you get is one of those below.",
        "Catch it where one reaction fits all: treat the message, the file or the answer as refused.",
    ),
    EncodeError: (
        "A value of the message that you make has the wrong type, is out of range or is too long.",
        "Correct the field that ``field`` names. Nothing was sent.",
    ),
    InvalidKeyError: (
        "The file is no PEM file, the password is wrong, the scheme is not supported, or an RSA key is below 2048 "
        "bits.",
        "Check the path that the error names, and the password. ``srup keygen`` makes a new key; register its "
        "public key at the other end.",
    ),
    DecodeError: (
        "Somebody sent something that is not SRUP version 5, or the bytes were cut or changed on the way.",
        "Nothing, if it is rare: anybody who reaches the broker can send bytes. ``srup inspect`` shows where a "
        "message goes wrong.",
    ),
    SignatureError: (
        "Another key signed the message, or it was changed. Most often the registered public key is not the sender's.",
        "Compare the fingerprint in the error with the one that the sender shows when it starts. If they differ, "
        "register the right key; if not, somebody forges messages, and they have no effect.",
    ),
    UnknownSenderError: (
        "The public key of this identity is not in the key ring. It was never registered, or it was removed or "
        "revoked.",
        "Register the public key: a file in the folder of ``--devices``, ``srup order register``, or "
        "``server.devices.add(...)``.",
    ),
    ReplayError: (
        "A message came twice, an attacker repeats an old one, or a device without a store has a clock that went back.",
        "Nothing, if it is rare: networks deliver twice. If a device is refused for long, set its clock, and give "
        "it a ``store`` or a ``first_sequence_id``.",
    ),
    PolicyError: (
        "The message is for another recipient, has expired, comes from a server that this device does not obey, or "
        "breaks your ``Policy``.",
        "Read the text, which says which. If messages expire, compare the clocks of both ends. If tokens are not "
        "bound, the partner is a deployed peer: allow it with ``require_bound_tokens=False``.",
    ),
    SealError: (
        "The value was sealed to another key, or was damaged. The error does not say which: that would help an "
        "attacker.",
        "Check that the sender has the public key that this end uses now, and ask again.",
    ),
    UnansweredError: (
        "The partner is away, is not reached through this broker, or is a deployed peer, which does not answer this.",
        "Check that the partner runs and has joined. Ask for its state before you repeat the request: the first one "
        "may have taken effect.",
    ),
    UpdateError: (
        "The file cannot be downloaded, is not allowed by the ``FetchPolicy``, has another digest, or was not "
        "activated.",
        "Read the text, and look up ``status`` in the table of status codes. Then correct the URL, the policy, the "
        "digest or the program that activates, and order the update again.",
    ),
    TransportError: (
        "The address or the port is wrong, nothing listens there, TLS does not trust the certificate, or the "
        "password or the certificate is refused.",
        "Check the URL and the CA file. A device and a server try again by themselves.",
    ),
    MessageTooLargeError: (
        "The broker has a limit on the size of messages that is below the size of this one.",
        "Raise the limit of the broker (``max_packet_size`` of Mosquitto) to 66,000 bytes, or send a smaller value.",
    ),
    StoreError: (
        "The disk is full, the file is damaged or belongs to somebody else, another process uses it, or it is an "
        "older copy.",
        "Read the text, which names the file. Make room, end the other process, or take an older copy over with "
        "``--adopt`` (docs/durability.md#when-a-store-cannot-be-trusted).",
    ),
    LeaseLostError: (
        "This worker was too slow or was cut off from Redis, so another one took its devices over.",
        "Nothing: the worker stops serving them by itself. If it happens often, look at the load, and at the link "
        "to Redis.",
    ),
    KeyServiceError: (
        "The token is wrong, used or too old, the identity is registered or revoked already, or the answer does not "
        "fit the request.",
        "Read the text; ``field`` names what is wrong. ``srup keyex token`` makes a new token. An identity that was "
        "revoked never comes back: choose another one.",
    ),
}
"""Why each error happens, and what to do about it. docs/errors.md shows this table."""

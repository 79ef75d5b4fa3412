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
    """A sealed value does not open. The cause is not told: an oracle needs just that (T13)."""


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
    """Another worker has taken this partition over: whoever gets this stops and touches nothing any more."""


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

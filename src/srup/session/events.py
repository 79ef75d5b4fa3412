"""What a session tells its owner. ``peer`` is the identity of the other side, ``token`` names the exchange."""

from dataclasses import dataclass, field

from ..messages import Message
from ..update import UpdateState
from ..wire import Status

__all__ = [
    "ActionAnswered",
    "ActionRequested",
    "ActivationRequested",
    "DataConfirmed",
    "DataReceived",
    "DataRefused",
    "DataRepeated",
    "Deregistered",
    "DevicesMissing",
    "DevicesShared",
    "Event",
    "FetchCancelled",
    "FetchRequested",
    "HumanJoinRequested",
    "IdentificationRefused",
    "Identified",
    "JoinAnswered",
    "JoinCommandAnswered",
    "JoinCommanded",
    "JoinExplained",
    "JoinRequested",
    "JoinValueReceived",
    "JoinWithdrawn",
    "KeyAnswered",
    "KeyOffered",
    "Left",
    "ObservationRequested",
    "Observed",
    "ObservedJoinRequested",
    "ObserverNamed",
    "RelayFailed",
    "SyndicatedActionRequested",
    "SyndicatedC2Requested",
    "SyndicatedDataReceived",
    "SyndicatedIdRequested",
    "SyndicatedIdentified",
    "SyndicationAnswered",
    "SyndicationEnded",
    "SyndicationOffered",
    "SyndicationRequested",
    "TokenChanged",
    "Unanswered",
    "Unexpected",
    "UpdateChanged",
]


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events."""

    peer: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Unexpected(Event):
    """A genuine message that no row of the table expects now; it had no effect."""

    message: type[Message]
    why: str


@dataclass(frozen=True, slots=True)
class Unanswered(Event):
    """A request of ours expired; whether it took effect is not known."""

    request: type[Message]
    message: Message | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class JoinRequested(Event):
    """Server: a device wants to join; call ``answer_join``."""


@dataclass(frozen=True, slots=True)
class HumanJoinRequested(Event):
    """Server: a device wants to join and to be compared by a person; call ``show_value``, then ``answer_join``.

    It fails by itself at ``expires``, a time of the session's clock. ``signer`` is the beginning of the
    fingerprint of the key that has signed the request: the value is to be sealed to that one.
    """

    expires: float
    signer: str = ""


@dataclass(frozen=True, slots=True)
class ObservedJoinRequested(Event):
    """Server: a device wants to join and to be observed; call ``show_value`` and ``observe``, then ``answer_join``.

    ``signer`` and ``expires`` are those of HumanJoinRequested.
    """

    observer: int
    signer: str = ""
    expires: float = 0.0


@dataclass(frozen=True, slots=True)
class JoinWithdrawn(Event):
    """Server: a join that was not answered yet is over, because the device began another one, or has left."""


@dataclass(frozen=True, slots=True)
class Observed(Event):
    """Server: an observer answered, or did not in time, about ``device``, which joins under ``join_token``."""

    device: int
    join_token: bytes
    status: Status


@dataclass(frozen=True, slots=True)
class JoinCommandAnswered(Event):
    """Server: a device followed a JoinCommand (JOIN_SUCCESS) or refused it."""

    status: Status


@dataclass(frozen=True, slots=True)
class JoinValueReceived(Event):
    """Device: open this value and show it, so that it can be compared."""

    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ObserverNamed(Event):
    """Device: the server refuses a simple join; an observed one with this observer would let us in."""

    observer: int


@dataclass(frozen=True, slots=True)
class JoinCommanded(Event):
    """Device: join ``server``; the command came from one that may give it."""

    server: int


@dataclass(frozen=True, slots=True)
class ObservationRequested(Event):
    """Device: compare what ``device`` shows with this value; call ``answer_observation``."""

    device: int
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinAnswered(Event):
    """Both sides: a join came to its end with ``status``; the device is a member if it is JOIN_SUCCESS.

    ``reason`` is, on the server, why it is not.
    """

    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JoinExplained(Event):
    """The device: the server says in words, printable ASCII, why it does not let us in; its status comes separately."""

    reason: str


@dataclass(frozen=True, slots=True)
class Left(Event):
    """Both sides: the membership is over, by a resignation or a termination."""


@dataclass(frozen=True, slots=True)
class Deregistered(Event):
    """Both sides: the other one's key is to be dropped; the partnership is over for good."""


@dataclass(frozen=True, slots=True)
class ActionRequested(Event):
    """The partner wants an action done; call ``answer_action``."""

    action_id: int


@dataclass(frozen=True, slots=True)
class ActionAnswered(Event):
    """The partner answered an action of ours."""

    status: Status


@dataclass(frozen=True, slots=True)
class DataReceived(Event):
    """The partner sent a value; call ``refuse_data`` when nobody knows its ``data_id``."""

    data_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class DataConfirmed(Event):
    """The partner has the value that we sent under this token, and no crash there makes it forget it."""


@dataclass(frozen=True, slots=True)
class DataRefused(Event):
    """The partner does not know the ``data_id`` of a value that we sent under this token."""


@dataclass(frozen=True, slots=True)
class DataRepeated(Event):
    """A value came that must be taken in order, and was taken before or has to wait for an earlier one; no effect."""


@dataclass(frozen=True, slots=True)
class TokenChanged(Event):
    """What was asked under the token ``former`` goes on under this one."""

    former: bytes


@dataclass(frozen=True, slots=True)
class KeyOffered(Event):
    """The partner wants another key to count for it; check ``data`` (see srup.rotation) and call ``answer_key``."""

    data: bytes


@dataclass(frozen=True, slots=True)
class KeyAnswered(Event):
    """The partner has taken our new key if ``status`` is ACTION_SUCCESS, and goes on with the old one otherwise."""

    status: Status


@dataclass(frozen=True, slots=True)
class Identified(Event):
    """Server: a device said what it is."""

    text: str


@dataclass(frozen=True, slots=True)
class FetchRequested(Event):
    """Device: fetch this firmware; call ``fetched`` or ``fetch_failed``."""

    url: str
    digest: str


@dataclass(frozen=True, slots=True)
class FetchCancelled(Event):
    """Device: fetch no more for this order.

    The server was told ``status``, if it was told anything, and ``why``.
    """

    digest: str
    status: Status | None
    why: str


@dataclass(frozen=True, slots=True)
class ActivationRequested(Event):
    """Device: check the digest again and activate; call ``activated`` or ``activation_failed``."""

    digest: str


@dataclass(frozen=True, slots=True)
class UpdateChanged(Event):
    """Server: an update took a step; ``status`` is the device's answer where it gave one.

    ``reason`` says why it failed, in printable ASCII: the device's words, or why the order does not stand any more.
    """

    state: UpdateState
    status: Status | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SyndicationOffered(Event):
    """Syndication device: register at the key service ``url`` and join there; call ``answer_init``."""

    url: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class SyndicationRequested(Event):
    """Away server: a syndication device wants to begin; call ``accept_syndication`` or ``refuse_syndication``."""

    sealed: bytes


@dataclass(frozen=True, slots=True)
class SyndicationAnswered(Event):
    """Home server and syndication device: a syndication has begun if ``status`` is JOIN_SUCCESS, or has failed."""

    status: Status


@dataclass(frozen=True, slots=True)
class SyndicationEnded(Event):
    """All three: a syndication is over, whoever ended it."""


@dataclass(frozen=True, slots=True)
class DevicesShared(Event):
    """Home server: the list of shared devices is complete."""

    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DevicesMissing(Event):
    """Home server: these numbers of the list have not come; if the device ``repeats`` it, call ``request_list``."""

    numbers: tuple[int, ...]
    repeats: bool


@dataclass(frozen=True, slots=True)
class SyndicatedDataReceived(Event):
    """Home server: a value of the shared device ``source``; call ``refuse_data`` when nobody knows its ``data_id``."""

    source: int
    data_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SyndicatedIdentified(Event):
    """Home server: the shared device ``source`` said what it is."""

    source: int
    text: str


@dataclass(frozen=True, slots=True)
class IdentificationRefused(Event):
    """Home server: the away server does not let a shared device say what it is, or cannot."""

    status: Status


@dataclass(frozen=True, slots=True)
class SyndicatedActionRequested(Event):
    """Away server: home wants an action of the shared device ``target``; call ``allow`` or ``refuse``."""

    target: int
    action_id: int


@dataclass(frozen=True, slots=True)
class SyndicatedIdRequested(Event):
    """Away server: home wants to know what the shared device ``target`` is; call ``allow`` or ``refuse``."""

    target: int


@dataclass(frozen=True, slots=True)
class SyndicatedC2Requested(Event):
    """Away server: a request of home's; carry it out and call ``allow``, or call ``refuse``."""

    req_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RelayFailed(Event):
    """Syndication device: what the other side's ``message`` asked could not be passed on from this one."""

    message: type[Message]
    why: str

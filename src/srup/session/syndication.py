"""Syndication, as its two servers see it (FLOWS.md, "Syndication"; T16).

::

    home server  <- home broker ->  syndication device  <- away broker ->  away server

Home commands a syndication device that joins the away server and carries everything between the two (:mod:`.relay`). A
server may play both roles, home with some devices and away with others; with one device it plays one. Messages of a
syndication come from and go to the one device it was begun with: those of any other member are refused.

The away server decides: with whom (``syndication_devices``, then ``accept_syndication``), about which of its devices
(the list), and about every single request (``allow``, ``refuse``).
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from struct import error as StructError
from struct import iter_unpack, pack
from typing import Any, ClassVar, Final

from .. import tokens
from ..errors import EncodeError, PolicyError, StoreError
from ..messages import (
    Action,
    Data,
    IdRequest,
    Message,
    Response,
    SyndicatedAction,
    SyndicatedC2Request,
    SyndicatedData,
    SyndicatedDeviceCount,
    SyndicatedDeviceList,
    SyndicatedEndRequest,
    SyndicatedIdRequest,
    SyndicatedTerminate,
    SyndicationInit,
    SyndicationRequest,
)
from ..records import Changes, Fact, State
from ..update import Step, Table, Word
from ..wire import IDENTIFICATION_RESPONSE, Status
from .base import ActionState, DataState, Exchange, Now, Opening, Output, Partner, Policy, Send, check_status
from .events import (
    DevicesMissing,
    DevicesShared,
    IdentificationRefused,
    SyndicatedActionRequested,
    SyndicatedC2Requested,
    SyndicatedDataReceived,
    SyndicatedIdentified,
    SyndicatedIdRequested,
    SyndicationAnswered,
    SyndicationEnded,
    SyndicationRequested,
)
from .reply import Asked, Content, Replying
from .server import TABLE as SERVER_TABLE
from .server import ServerSession, ServerState

__all__ = [
    "MAX_SHARED",
    "RESEND",
    "TABLE",
    "Role",
    "Syndication",
    "SyndicationServerSession",
    "SyndicationState",
]

RESEND: Final = 0xFF
"""The ``req_id`` of a SyndicatedC2Request that asks for the list of devices again (docs/extensions.md)."""

MAX_SHARED: Final = 10_000
"""How many devices one syndication shares at most (T9)."""

MAX_RESEND: Final = 4096
"""How many missing numbers one request names at most."""

JOIN_RESULTS: Final = (Status.JOIN_SUCCESS, Status.JOIN_REFUSED, Status.JOIN_FAIL)
ACTION_RESULTS: Final = (Status.ACTION_SUCCESS, Status.ACTION_UNKNOWN, Status.ACTION_FAIL)
END_RESULTS: Final = (Status.RESIGN_SUCCESS, Status.RESIGN_FAIL)


SYNDICATION: Final = "syndication"
"""The fact about a syndication device that says how its syndication stands."""


class Role(Enum):
    """Which server of a syndication we are."""

    HOME = "we command devices of the other server"
    AWAY = "the other server commands devices of ours"


@dataclass(slots=True, eq=False)
class Syndication:
    """A syndication, as one of its servers knows it."""

    device: int  # the syndication device
    role: Role
    token: bytes = b""  # of the list that counts
    count: int | None = None  # how many devices are shared; None before the away server said so
    counted: int = 0  # home: the sequence id that said so
    expiry: float = 0.0  # away: until when the token of the list is good
    devices: dict[int, int] = field(default_factory=dict)  # identities by number
    pause: float = 0.0  # home: how long to wait before missing numbers are told the next time
    due: float | None = None  # home: when that is

    def dump(self) -> str:
        """Return it as JSON, without its device."""
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        return json.dumps(kept | {"role": self.role.name, "token": self.token.hex()})

    @classmethod
    def load(cls, device: int, text: str) -> "Syndication":
        """Return what :meth:`dump` has written; StoreError if it is anything else."""
        try:
            kept = json.loads(text)
            kept["devices"] = {int(number): identity for number, identity in kept["devices"].items()}
            return cls(device, **kept | {"role": Role[kept["role"]], "token": bytes.fromhex(kept["token"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the syndication by {device:x} in the store is not readable: {error}") from None

    def contradicts(self, number: int) -> bool:
        """Tell whether a list that counts from 1 or from 0, whichever it does, cannot have this number too."""
        if self.count is None:
            return False
        first = 1 if self.count in self.devices or not self.count else 0
        last = self.count - (0 in self.devices)
        return not first <= number <= last

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the list that have not come: it counts from 1, or from 0 if it has that number.

        srup counts from 1; a syndication device passes a 0 on only from deployed servers.
        """
        if self.count is None or len(self.devices) >= self.count:
            return ()
        first = 0 if 0 in self.devices else 1
        return tuple(number for number in range(first, first + self.count) if number not in self.devices)


class SyndicationState(Enum):
    """Exchanges of a syndication, seen from either server."""

    NEW = "nothing happened yet"
    STARTING = "the syndication device is to join the away server"
    STARTED = "it has joined, or said why not"
    LISTED = "the away server said how many devices it shares"
    IDENTIFYING = "a shared device is to say what it is"
    ENDING = "the away server is to confirm the end"
    DECIDING = "the owner is to say which devices are shared"
    SHARING = "home is to confirm how many devices there are"
    MODERATING = "the owner is to say whether it may be done"
    CARRYING = "the shared device is to do it"
    TERMINATING = "home is to confirm the end"
    ANSWERED = "the answer is on its way, or here"
    ENDED = "it is over"
    UNANSWERED = "the time is over"


_S = SyndicationState
_REQUESTS: Final = (SyndicatedAction, SyndicatedIdRequest, SyndicatedC2Request)

HOME_TABLE: Final[Table] = {
    (_S.STARTING, Status.JOIN_SUCCESS): Step(_S.STARTED, "syndication_begun"),
    (_S.STARTING, Status.JOIN_REFUSED): Step(_S.STARTED, "syndication_failed"),
    (_S.STARTING, Status.JOIN_FAIL): Step(_S.STARTED, "syndication_failed"),
    (_S.STARTING, Word.EXPIRE): Step(_S.UNANSWERED, "syndication_unanswered"),
    **{(_S.STARTED, status): Step(_S.STARTED) for status in JOIN_RESULTS},
    (_S.NEW, SyndicatedDeviceCount): Step(_S.LISTED, "devices_counted"),
    (_S.LISTED, SyndicatedDeviceCount): Step(_S.LISTED, "repeat_answer"),
    (_S.NEW, SyndicatedDeviceList): Step(_S.LISTED, "device_listed"),
    (_S.LISTED, SyndicatedDeviceList): Step(_S.LISTED, "device_listed"),
    (_S.NEW, SyndicatedData): Step(DataState.TAKEN, "syndicated_data_received"),
    (_S.IDENTIFYING, SyndicatedData): Step(_S.ANSWERED, "syndicated_identified"),
    **{(_S.IDENTIFYING, status): Step(_S.ANSWERED, "identification_refused") for status in ACTION_RESULTS},
    (_S.IDENTIFYING, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
    (_S.ANSWERED, SyndicatedData): Step(_S.ANSWERED),
    **{(_S.ANSWERED, status): Step(_S.ANSWERED) for status in ACTION_RESULTS},
    **{(_S.ENDING, status): Step(_S.ENDED, "end_confirmed") for status in END_RESULTS},
    **{(_S.ENDED, status): Step(_S.ENDED) for status in END_RESULTS},
    (_S.ENDING, Word.EXPIRE): Step(_S.ENDED, "end_unconfirmed"),
    (_S.NEW, SyndicatedTerminate): Step(_S.ENDED, "terminated_by_away"),
    (_S.ENDED, SyndicatedTerminate): Step(_S.ENDED, "repeat_answer"),
}
"""The home server's rows. Actions and C2 requests of ours have those of any action of ours."""

AWAY_TABLE: Final[Table] = {
    (_S.NEW, SyndicationRequest): Step(_S.DECIDING, "syndication_requested"),
    (_S.DECIDING, SyndicationRequest): Step(_S.DECIDING),  # sealed anew, perhaps
    (_S.DECIDING, Word.ALLOW): Step(_S.ANSWERED, "begin_sharing"),
    (_S.DECIDING, Word.ANSWER): Step(_S.ANSWERED, "answer"),
    (_S.DECIDING, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.ANSWERED, SyndicationRequest): Step(_S.ANSWERED, "repeat_answer"),
    (_S.SHARING, Status.ACTION_SUCCESS): Step(_S.ANSWERED),
    (_S.SHARING, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
    **{(_S.NEW, cls): Step(_S.MODERATING, "moderate") for cls in _REQUESTS},
    **{(_S.MODERATING, cls): Step(_S.MODERATING, "same_request") for cls in _REQUESTS},
    **{(_S.CARRYING, cls): Step(_S.CARRYING, "same_request") for cls in _REQUESTS},
    **{(_S.ANSWERED, cls): Step(_S.ANSWERED, "reply_again") for cls in _REQUESTS},
    (_S.MODERATING, Word.ALLOW): Step(_S.CARRYING, "carry"),
    (_S.MODERATING, Word.ANSWER): Step(_S.ANSWERED, "reply"),
    (_S.MODERATING, Word.EXPIRE): Step(_S.UNANSWERED),
    (_S.CARRYING, Word.ANSWER): Step(_S.ANSWERED, "reply"),
    (_S.CARRYING, Word.EXPIRE): Step(_S.UNANSWERED),
    **{(state, Word.LEAVE): Step(_S.UNANSWERED) for state in (_S.DECIDING, _S.MODERATING, _S.CARRYING)},
    (_S.NEW, SyndicatedEndRequest): Step(_S.ENDED, "ended_by_home"),
    (_S.ENDED, SyndicatedEndRequest): Step(_S.ENDED, "repeat_answer"),
    (_S.TERMINATING, Status.RESIGN_SUCCESS): Step(_S.ENDED),
    (_S.TERMINATING, Word.EXPIRE): Step(_S.ENDED),
}
"""The away server's rows. What expires gets no answer: home's own time is over then."""

TABLE: Final[Table] = {**SERVER_TABLE, **HOME_TABLE, **AWAY_TABLE}


class SyndicationServerSession(Replying, ServerSession):
    """A server that takes part in syndications, as home, as away, or both.

    ``syndication_devices`` are the identities that are registered as such (FLOWS.md: type RSYND) and may therefore ask
    for a syndication with us; change it at any time.
    """

    table: ClassVar[Table] = TABLE
    facts = ServerSession.facts | {SYNDICATION}
    volatile = ServerSession.volatile | {_S.DECIDING, _S.MODERATING}  # they ask again, and so the owner is asked again
    openings = {
        **ServerSession.openings,
        SyndicatedDeviceCount: Opening(_S.NEW),
        SyndicatedDeviceList: Opening(_S.NEW, remembered=False),
        SyndicatedData: Opening(_S.NEW, remembered=False),
        SyndicatedTerminate: Opening(_S.NEW),
        SyndicationRequest: Opening(_S.NEW),
        SyndicatedAction: Opening(_S.NEW),
        SyndicatedIdRequest: Opening(_S.NEW),
        SyndicatedC2Request: Opening(_S.NEW),
        SyndicatedEndRequest: Opening(_S.NEW),
    }

    def __init__(
        self,
        identity: int,
        policy: Policy | None = None,
        first_sequence_id: int = 1,
        syndication_devices: Collection[int] = (),
    ) -> None:
        super().__init__(identity, policy, first_sequence_id)
        self.syndication_devices = set(syndication_devices)
        self._syndications: dict[int, Syndication] = {}
        self._stored: dict[int, str] = {}  # what a store has of them

    def changes(self) -> Changes:
        """See :meth:`Session.changes`."""
        touched = [*self._touched, *self._dropped]
        changes = super().changes()
        for device in touched:
            syndication = self._syndications.get(device)
            text = None if syndication is None else syndication.dump()
            if text != self._stored.get(device):
                changes.facts.append(Fact(device, SYNDICATION, text))
                if text is None:
                    del self._stored[device]
                else:
                    self._stored[device] = text
        return changes

    def restore(self, state: State, now: float) -> list[Output]:
        """See :meth:`Session.restore`."""
        again = super().restore(state, now)
        for fact in state.facts:
            if fact.name == SYNDICATION and fact.value is not None and fact.identity in self._partners:
                self._stored[fact.identity] = fact.value
                self._syndications[fact.identity] = Syndication.load(fact.identity, fact.value)
        return again

    def tick(self, now: float) -> list[Output]:
        """See :meth:`Session.tick`; tells besides which numbers of a list have not come, at growing intervals."""
        outputs = super().tick(now)
        for syndication in self._syndications.values():
            if syndication.due is not None and syndication.due <= now:
                syndication.pause = min(2 * syndication.pause, self.policy.max_retry)
                syndication.due = now + syndication.pause
                repeats = self._binds(self._partner(syndication.device))
                event = DevicesMissing(syndication.device, syndication.token, syndication.missing, repeats)
                outputs.append(event)
        return outputs

    def deadline(self) -> float | None:
        """See :meth:`Session.deadline`."""
        dues = (super().deadline(), *(syndication.due for syndication in self._syndications.values()))
        return min((due for due in dues if due is not None), default=None)

    def syndication(self, device: int) -> Syndication | None:
        """Return the syndication with this device, None if there is none; to be looked at only."""
        return self._syndications.get(device)

    # What home can be told to do.

    def begin_syndication(
        self, device: int, url: str, sealed: bytes, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Have a syndication device join the server whose key service is at ``url``; SyndicationAnswered follows.

        ``sealed`` is what the away server's owner recognises us by, sealed to the device. Persons may have to agree on
        the other side, so the device has ``lifetime`` seconds (default: the policy's ``update_lifetime``). A device
        that never answers, as deployed ones do not, has begun when it brings the first word of the away server.
        """
        if device in self._syndications or device in self.syndication_devices:
            raise PolicyError(f"{device:x} serves another syndication")
        lifetime = self.policy.update_lifetime if lifetime is None else lifetime
        sends = self._ask(device, _S.STARTING, SyndicationInit, now, nonce, lifetime, url=url, sealed=sealed)
        self._syndications[device] = Syndication(device, Role.HOME)
        for ending in self._partner(device).exchanges.values():
            if ending.state is _S.ENDING:  # sent again it would come after the offer, and undo it
                ending.retry = 0.0
        return sends

    def request_list(self, device: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for what is missing of the list of shared devices, or for all of it if nothing has come."""
        numbers = self._required(self._partner(device), Role.HOME).missing[:MAX_RESEND]
        data = pack(f"<{len(numbers)}I", *numbers)
        return self._ask(device, ActionState.ASKED, SyndicatedC2Request, now, nonce, None, data=data, req_id=RESEND)

    def syndicated_action(
        self, device: int, target: int, action_id: int, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Ask for an action of a shared device; ActionAnswered or Unanswered follows."""
        self._required(self._partner(device), Role.HOME)
        fields: dict[str, Any] = {"action_id": action_id, "target_id": target}
        return self._ask(device, ActionState.ASKED, SyndicatedAction, now, nonce, lifetime, **fields)

    def syndicated_identify(self, device: int, target: int, now: float, nonce: bytes) -> list[Send]:
        """Ask what a shared device is; SyndicatedIdentified, IdentificationRefused or Unanswered follows."""
        self._required(self._partner(device), Role.HOME)
        return self._ask(device, _S.IDENTIFYING, SyndicatedIdRequest, now, nonce, None, target_id=target)

    def syndicated_request(self, device: int, req_id: int, data: bytes, now: float, nonce: bytes) -> list[Send]:
        """Make a request of the away server (C2 request); ActionAnswered or Unanswered follows.

        What a ``req_id`` from 0 to 254 means is agreed between the owners; 255 asks for the list of devices.
        """
        if req_id == RESEND:
            raise EncodeError("req_id", f"{RESEND} is taken: it asks for the list of devices")
        self._required(self._partner(device), Role.HOME)
        return self._ask(device, ActionState.ASKED, SyndicatedC2Request, now, nonce, None, data=data, req_id=req_id)

    def end_syndication(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """End a syndication as home: nothing of it is taken any more.

        SyndicationEnded follows when the away server confirms, Unanswered when it does not (it is over all the same).
        """
        self._required(self._partner(device), Role.HOME)
        sends = self._ask(device, _S.ENDING, SyndicatedEndRequest, now, nonce, None)
        return [*sends, *self._drop(self._partner(device), now)]

    # What away can be told to do.

    def accept_syndication(
        self, device: int, token: bytes, devices: Iterable[int], now: float, nonce: bytes
    ) -> list[Output]:
        """Accept a SyndicationRequested and share these devices of ours."""
        return self._drive(device, token, Word.ALLOW, _checked(devices), now, nonce)

    def refuse_syndication(
        self, device: int, token: bytes, now: float, status: Status = Status.JOIN_REFUSED
    ) -> list[Output]:
        """Answer a SyndicationRequested with JOIN_REFUSED or JOIN_FAIL."""
        check_status(status, JOIN_RESULTS[1:])
        return self._drive(device, token, Word.ANSWER, status, now)

    def share(self, device: int, devices: Iterable[int], now: float, nonce: bytes) -> list[Output]:
        """Share these devices from now on, and no others; home gets a new list."""
        syndication = self._required(self._partner(device), Role.AWAY)
        return self._share(syndication, _checked(devices), now, nonce)

    def allow(self, device: int, token: bytes, now: float, nonce: bytes) -> list[Output]:
        """Let a request of home's happen: it goes to the shared device, and the answer back. A C2 request is done."""
        return self._drive(device, token, Word.ALLOW, None, now, nonce)

    def refuse(self, device: int, token: bytes, now: float, status: Status = Status.ACTION_FAIL) -> list[Output]:
        """Answer a request of home's with ACTION_FAIL or ACTION_UNKNOWN."""
        check_status(status, ACTION_RESULTS[1:])
        return self._drive(device, token, Word.ANSWER, Content.status(status), now)

    def terminate_syndication(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """End a syndication as away: nothing is shared and nothing is asked any more. The device remains joined."""
        self._required(self._partner(device), Role.AWAY)
        [send] = self._ask(device, _S.TERMINATING, SyndicatedTerminate, now, nonce, None)
        self._drop(self._partner(device), now)
        return [send, SyndicationEnded(device, send.message.token)]

    # Effects at home.

    def syndication_begun(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The syndication device is in at the away server."""
        syndication = self._required(exchange.partner, Role.HOME)
        self._expect_list(syndication, now.time)
        return [SyndicationAnswered(exchange.partner.identity, exchange.token, Status.JOIN_SUCCESS)]

    def syndication_failed(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The syndication device did not get in."""
        self._syndications.pop(exchange.partner.identity, None)
        return [SyndicationAnswered(exchange.partner.identity, exchange.token, Status(cause.status))]

    def syndication_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The syndication device never said whether it got in."""
        self._syndications.pop(exchange.partner.identity, None)
        return self.unanswered(exchange, cause, now)

    def devices_counted(self, exchange: Exchange, cause: SyndicatedDeviceCount, now: Now) -> list[Output]:
        """A new list begins; what is left of another one does not count."""
        syndication = self._required(exchange.partner, Role.HOME)
        if cause.count > MAX_SHARED:
            raise PolicyError(f"{cause.count} shared devices are too many; {MAX_SHARED} are possible")
        outputs = self.answer(exchange, Status.ACTION_SUCCESS, now)
        outputs += self._heard(exchange, cause, now)
        if cause.sequence_id < syndication.counted:
            return outputs  # overtaken by a newer one
        unbound = tokens.parse(exchange.token) is None
        kept = syndication.devices if unbound and syndication.count is None else {}
        syndication.token, syndication.count, syndication.counted = exchange.token, cause.count, cause.sequence_id
        syndication.devices = {}
        for number, device in kept.items():
            if not syndication.contradicts(number):
                syndication.devices[number] = device
        self._expect_list(syndication, now.time)
        return [*outputs, *self._complete(syndication)]

    def device_listed(self, exchange: Exchange, cause: SyndicatedDeviceList, now: Now) -> list[Output]:
        """One entry of the list. It has the token of its count, except among deployed peers."""
        syndication = self._required(exchange.partner, Role.HOME)
        if exchange.token != syndication.token and tokens.parse(exchange.token) is not None:
            raise PolicyError("the entry belongs to another list of devices than the one that counts")
        if cause.device_sequence > MAX_SHARED or syndication.contradicts(cause.device_sequence):
            raise PolicyError(f"the list has no number {cause.device_sequence}")
        outputs = self._heard(exchange, cause, now)
        if syndication.devices.get(cause.device_sequence) == cause.device_id:
            return outputs
        syndication.devices[cause.device_sequence] = cause.device_id
        return [*outputs, *self._complete(syndication)]

    def syndicated_data_received(self, exchange: Exchange, cause: SyndicatedData, now: Now) -> list[Output]:
        """A value of a shared device; or what it is, which deployed peers send under a token of its own."""
        self._required(exchange.partner, Role.HOME)
        outputs = self._heard(exchange, cause, now)
        identity, token = exchange.partner.identity, exchange.token
        waiting = [
            other
            for other in exchange.partner.exchanges.values()
            if other.state is _S.IDENTIFYING and getattr(other.request, "target_id", None) == cause.source_id
        ]
        if cause.data_id != IDENTIFICATION_RESPONSE or not waiting:
            return [*outputs, SyndicatedDataReceived(identity, token, cause.source_id, cause.data_id, cause.data)]
        step = self.table[_S.IDENTIFYING, SyndicatedData]
        return [*outputs, *(output for other in waiting for output in self._take(other, step, cause, now))]

    def syndicated_identified(self, exchange: Exchange, cause: SyndicatedData, now: Now) -> list[Output]:
        """A shared device said what it is."""
        self._required(exchange.partner, Role.HOME)
        asked = getattr(exchange.request, "target_id", None)
        if (cause.data_id, cause.source_id) != (IDENTIFICATION_RESPONSE, asked):
            raise PolicyError(f"{cause.data_id[:80]!r} of {cause.source_id:x} is not what was asked for")
        text = cause.data.decode(errors="replace")
        return [SyndicatedIdentified(exchange.partner.identity, exchange.token, cause.source_id, text)]

    def identification_refused(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The away server does not tell what a shared device is."""
        return [IdentificationRefused(exchange.partner.identity, exchange.token, Status(cause.status))]

    def end_confirmed(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The away server took notice of the end."""
        return [SyndicationEnded(exchange.partner.identity, exchange.token)]

    def end_unconfirmed(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The away server did not confirm the end; it is over all the same."""
        return self.unanswered(exchange, cause, now)

    def terminated_by_away(self, exchange: Exchange, cause: SyndicatedTerminate, now: Now) -> list[Output]:
        """The away server ended the syndication."""
        self._required(exchange.partner, Role.HOME)
        ended = SyndicationEnded(exchange.partner.identity, exchange.token)
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        return [*outputs, ended, *self._drop(exchange.partner, now.time)]

    # Effects at the away server.

    def syndication_requested(self, exchange: Exchange, cause: SyndicationRequest, now: Now) -> list[Output]:
        """A syndication device wants to begin; only one that is registered as such may."""
        identity = exchange.partner.identity
        known = self._syndications.get(identity)
        if identity not in self.syndication_devices or (known is not None and known.role is Role.HOME):
            raise PolicyError(f"{identity:x} is not registered as a syndication device here")
        return [SyndicationRequested(identity, exchange.token, cause.sealed)]

    def begin_sharing(self, exchange: Exchange, cause: tuple[int, ...], now: Now) -> list[Output]:
        """The owner accepts; what this device had before is replaced."""
        identity = exchange.partner.identity
        if identity not in self.syndication_devices:
            raise PolicyError(f"{identity:x} is not registered as a syndication device any more")
        outputs = self.answer(exchange, Status.JOIN_SUCCESS, now)
        syndication = Syndication(identity, Role.AWAY)
        outputs += self._share(syndication, cause, now.time, now.nonce)
        if identity in self._syndications:
            self._drop(exchange.partner, now.time)
        self._syndications[identity] = syndication
        return [SyndicationAnswered(identity, exchange.token, Status.JOIN_SUCCESS), *outputs]

    def moderate(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Home asks for something. The list is sent at once; what concerns devices that are not shared is unknown."""
        syndication = self._required(exchange.partner, Role.AWAY)
        self._asked(exchange, cause, now)
        identity, token = exchange.partner.identity, exchange.token
        match cause:
            case SyndicatedC2Request(req_id=req_id) if req_id == RESEND:
                return self._resend(syndication, exchange, cause.data, now)
            case SyndicatedC2Request():
                return [SyndicatedC2Requested(identity, token, cause.req_id, cause.data)]
            case SyndicatedAction(target_id=target) if target in syndication.devices.values():
                return [SyndicatedActionRequested(identity, token, target, cause.action_id)]
            case SyndicatedIdRequest(target_id=target) if target in syndication.devices.values():
                return [SyndicatedIdRequested(identity, token, target)]
            case _:
                return self._reply_at_once(exchange, Status.ACTION_UNKNOWN, now)

    def carry(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The owner lets it happen: ask the shared device; a C2 request the owner has carried out."""
        syndication = self._required(exchange.partner, Role.AWAY)
        asked: Asked = exchange.detail
        if now.time >= asked.expiry:
            raise PolicyError("it is too late: home does not wait for this any more")
        cls, fields = asked.request.cls, dict(asked.request.fields)
        if cls is SyndicatedC2Request:
            return self._reply_at_once(exchange, Status.ACTION_SUCCESS, now)
        target = fields.pop("target_id")
        if target not in syndication.devices.values() or not self.is_member(target):
            return self._reply_at_once(exchange, Status.ACTION_FAIL, now)
        state, request = _CARRIED[cls]
        lifetime = asked.expiry - now.time
        return [*self._ask(target, state, request, now.time, now.nonce, lifetime, detail=exchange, **fields)]

    def action_answered(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """See :meth:`Session.action_answered`; what home wanted to be done is answered to home."""
        outputs = super().action_answered(exchange, cause, now)
        return [*outputs, *self._bring_back(exchange, Content.status(Status(cause.status)), now)]

    def identified(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """See :meth:`ServerSession.identified`; what home wanted to know is told to home."""
        outputs = super().identified(exchange, cause, now)
        fields = ("data_id", cause.data_id), ("data", cause.data), ("source_id", exchange.partner.identity)
        return [*outputs, *self._bring_back(exchange, Content(SyndicatedData, fields), now)]

    def data_received(self, exchange: Exchange, cause: Data, now: Now) -> list[Output]:
        """See :meth:`ServerSession.data_received`; values of shared devices go to home as well."""
        outputs = super().data_received(exchange, cause, now)
        if cause.data_id != IDENTIFICATION_RESPONSE:
            for device in self.shares(exchange.partner.identity):
                try:
                    outputs += self._pass_on(device, exchange.partner.identity, cause, now)
                except PolicyError:
                    continue  # no sequence id is left for that device, which is not the trouble of this one
        return outputs

    def ended_by_home(self, exchange: Exchange, cause: SyndicatedEndRequest, now: Now) -> list[Output]:
        """Home ended the syndication."""
        self._required(exchange.partner, Role.AWAY)
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        self._drop(exchange.partner, now.time)
        return [*outputs, SyndicationEnded(exchange.partner.identity, exchange.token)]

    def shares(self, target: int) -> list[int]:
        """Return the syndication devices that a device of ours is shared through."""
        return [
            syndication.device
            for syndication in self._syndications.values()
            if syndication.role is Role.AWAY
            and target in syndication.devices.values()
            and self.is_member(syndication.device)
        ]

    # Effects at both: a membership that ends takes the syndication with it.

    def revoke(self, device: int, now: float) -> list[Output]:
        """See :meth:`ServerSession.revoke`."""
        outputs = super().revoke(device, now)
        return [*outputs, *([SyndicationEnded(device, b"")] if self._syndications.pop(device, None) else [])]

    def join_timed_out(self, exchange: Exchange, cause: None, now: Now) -> list[Output]:
        """See :meth:`ServerJoins.join_timed_out`."""
        outputs = super().join_timed_out(exchange, cause, now)
        return [*outputs, *self._lose(exchange.partner, exchange.token, now.time)]

    def answer_to_join(self, exchange: Exchange, cause: tuple[Status, int | None], now: Now) -> list[Output]:
        """See :meth:`ServerJoins.answer_to_join`."""
        outputs = super().answer_to_join(exchange, cause, now)
        if not exchange.partner.member:
            outputs += self._lose(exchange.partner, exchange.token, now.time)
        return outputs

    def _part(self, device: Partner, token: bytes, now: float) -> list[Output]:
        outputs = super()._part(device, token, now)
        return [*outputs, *self._lose(device, token, now)]

    # Mechanism.

    def _required(self, partner: Partner, role: Role) -> Syndication:
        """Return the syndication that this partner serves us in; PolicyError if there is none (T16)."""
        syndication = self._syndications.get(partner.identity)
        if syndication is None or syndication.role is not role or not partner.member:
            raise PolicyError(f"{partner.identity:x} is not the syndication device of a syndication of ours")
        return syndication

    def _heard(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Take word of the away server for the answer to SyndicationInit: deployed devices give none."""
        starting = [other for other in exchange.partner.exchanges.values() if other.state is _S.STARTING]
        step = self.table[_S.STARTING, Status.JOIN_SUCCESS]
        return [output for other in starting for output in self._take(other, step, cause, now)]

    def _expect_list(self, syndication: Syndication, now: float) -> None:
        syndication.pause = self.policy.first_retry
        syndication.due = now + syndication.pause

    def _complete(self, syndication: Syndication) -> list[Output]:
        if syndication.count is None or len(syndication.devices) < syndication.count:
            return []
        syndication.due = None
        devices = tuple(device for _, device in sorted(syndication.devices.items()))
        return [DevicesShared(syndication.device, syndication.token, devices)]

    def _drop(self, partner: Partner, now: float) -> list[Output]:
        """Forget a syndication, and end what was still asked in it: nothing of that is done or answered any more."""
        syndication = self._syndications.pop(partner.identity)
        if syndication.role is Role.AWAY:
            for exchange in partner.exchanges.values():
                if exchange.state in (_S.MODERATING, _S.CARRYING):
                    self._take(exchange, self.table[exchange.state, Word.LEAVE], None, Now(now, b""))
            return []
        asked = [
            exchange
            for exchange in partner.exchanges.values()
            if exchange.mine and type(exchange.request) in (SyndicationInit, *_REQUESTS) and self._is_open(exchange)
        ]
        return self._abandon(asked, now)

    def _lose(self, partner: Partner, token: bytes, now: float) -> list[Output]:
        if partner.identity not in self._syndications:
            return []
        return [*self._drop(partner, now), SyndicationEnded(partner.identity, token)]

    def _share(self, syndication: Syndication, devices: tuple[int, ...], now: float, nonce: bytes) -> list[Output]:
        """Send a new list: the count, which is to be confirmed, and every entry under its token."""
        lifetime, count = self.policy.update_lifetime, len(devices)
        [send] = self._ask(syndication.device, _S.SHARING, SyndicatedDeviceCount, now, nonce, lifetime, count=count)
        syndication.token, syndication.count, syndication.expiry = send.message.token, count, now + lifetime
        syndication.devices = dict(enumerate(devices, 1))
        partner = self._partner(syndication.device)
        for other in [other for other in partner.exchanges.values() if other.state is _S.SHARING]:
            if other.token != syndication.token:
                self._forget(other)  # sent again, it would pass for newer than this one
        return [send, *self._entries(syndication, syndication.devices)]

    def _entries(self, syndication: Syndication, numbers: Iterable[int]) -> list[Send]:
        listing = Exchange(self._partner(syndication.device), syndication.token, _S.SHARING, 0.0, mine=True)
        return [
            self._send(listing, SyndicatedDeviceList, device_sequence=number, device_id=syndication.devices[number])
            for number in numbers
            if number in syndication.devices
        ]

    def _pass_on(self, device: int, source: int, value: Data, now: Now) -> list[Send]:
        fields: dict[str, Any] = {"data_id": value.data_id, "data": value.data, "source_id": source}
        args = device, DataState.SENT, SyndicatedData, now.time, now.nonce, None
        return self._ask(*args, resend=False, **fields)

    def _resend(self, syndication: Syndication, exchange: Exchange, data: bytes, now: Now) -> list[Output]:
        """Send entries of the list again; the list itself if none is named or its token is not good any more."""
        try:
            numbers = tuple(number for (number,) in iter_unpack("<I", data))[:MAX_RESEND]
        except StructError:
            return self._reply_at_once(exchange, Status.ACTION_UNKNOWN, now)
        outputs: list[Output]
        if not numbers or now.time >= syndication.expiry:
            outputs = self._share(syndication, tuple(syndication.devices.values()), now.time, now.nonce)
        else:
            outputs = [*self._entries(syndication, dict.fromkeys(numbers))]
        return [*outputs, *self._reply_at_once(exchange, Status.ACTION_SUCCESS, now)]

    def _reply_at_once(self, exchange: Exchange, status: Status, now: Now) -> list[Output]:
        return self._take(exchange, self.table[exchange.state, Word.ANSWER], Content.status(status), now)

    def _bring_back(self, carried: Exchange, content: Content, now: Now) -> list[Output]:
        """Answer to home what a shared device answered to us, unless the time is over."""
        origin = carried.detail
        if not isinstance(origin, Exchange) or (origin.state, Word.ANSWER) not in self.table:
            return []
        return self._take(origin, self.table[origin.state, Word.ANSWER], content, now)


_CARRIED: Final[Mapping[type[Message], tuple[Enum, type[Message]]]] = {
    SyndicatedAction: (ActionState.ASKED, Action),
    SyndicatedIdRequest: (ServerState.IDENTIFYING, IdRequest),
}
"""What a shared device is asked for home: in which state, by which message."""


def _checked(devices: Iterable[int]) -> tuple[int, ...]:
    """Return the devices, each once; raise EncodeError unless they are identities and not too many."""
    checked = tuple(dict.fromkeys(devices))
    if len(checked) > MAX_SHARED:
        raise EncodeError("devices", f"{MAX_SHARED} devices can be shared, not {len(checked)}")
    for device in checked:
        if type(device) is not int or not 0 <= device < 1 << 64:
            raise EncodeError("devices", f"an identity is an int in 0..2**64-1, not {device!r}")
    return checked

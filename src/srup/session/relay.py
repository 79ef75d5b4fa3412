"""A syndication device: two devices in one, on two networks that never meet (FLOWS.md, "Syndication"; T16).

Each side is a session of its own, with its own identity, server, counters and window, and its owner gives each a key
and a broker of its own. All that goes across are events: what one side puts out as a :class:`Crossing`, its owner
hands to the other side's ``cross``. It carries a message's content and never its header, so whatever leaves a side has
that side's identity, sequence id and token, and is signed with its key.

Which messages cross, and in which direction, stands in ``TO_AWAY`` and ``TO_HOME``. A request goes on under a token of
the next hop and is remembered, so that a repetition does not cross twice and the answer finds its way back.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple

from .. import tokens
from ..errors import PolicyError
from ..messages import (
    Action,
    Data,
    DeregisterCommand,
    HumanJoinResponse,
    IdRequest,
    Message,
    ObservedJoinResponse,
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
    TerminateCommand,
)
from ..update import Step, Table, Trigger, Word
from ..wire import Status
from .base import Exchange, Now, Opening, Output, Partner, Policy, Send, check_status
from .device import TABLE as DEVICE_TABLE
from .device import DeviceSession
from .events import Event, RelayFailed, SyndicationAnswered, SyndicationEnded, SyndicationOffered
from .reply import Content, Replying, good_until
from .syndication import ACTION_RESULTS, END_RESULTS, JOIN_RESULTS, RESEND

__all__ = [
    "AWAY_TABLE",
    "HOME_TABLE",
    "TO_AWAY",
    "TO_HOME",
    "AwaySide",
    "Crossing",
    "HomeSide",
    "Relay",
    "RelayAnswered",
    "RelayState",
    "Relayed",
    "failure",
]


@dataclass(frozen=True, slots=True)
class Crossing(Event):
    """What one side tells the other; its owner hands it to the other side's ``cross`` and does nothing else with it."""


@dataclass(frozen=True, slots=True)
class Relayed(Crossing):
    """A message came in from ``peer`` under ``token`` and is to go on; what it asks counts until ``expiry``."""

    content: Content
    expiry: float


@dataclass(frozen=True, slots=True)
class RelayAnswered(Crossing):
    """What had come in on the other side under the token ``origin`` is answered."""

    origin: bytes
    content: Content


class Relay(NamedTuple):
    """A message that crosses: what may answer it, and what its sender is told when it cannot be passed on."""

    answers: tuple[Trigger, ...] = ()
    failure: Status | None = None
    repeated: bool = True  # until it is answered


TO_AWAY: Final[Mapping[type[Message], Relay]] = {
    SyndicatedAction: Relay(ACTION_RESULTS, Status.ACTION_FAIL),
    SyndicatedIdRequest: Relay((*ACTION_RESULTS, SyndicatedData), Status.ACTION_FAIL),
    SyndicatedC2Request: Relay(ACTION_RESULTS, Status.ACTION_FAIL),
    SyndicatedEndRequest: Relay(END_RESULTS, Status.RESIGN_FAIL),
}
"""What comes from the home server and goes to the away server."""

TO_HOME: Final[Mapping[type[Message], Relay]] = {
    SyndicatedDeviceCount: Relay((Status.ACTION_SUCCESS,)),
    SyndicatedDeviceList: Relay(repeated=False),
    SyndicatedData: Relay((Status.DATA_TYPE_UNKNOWN,), repeated=False),
    SyndicatedTerminate: Relay((Status.RESIGN_SUCCESS,)),
}
"""What comes from the away server and goes to the home server."""


class RelayState(Enum):
    """Exchanges that only a syndication device sees."""

    NEW = "nothing happened yet"
    OFFERED = "the owner is to register and join the away server"
    REQUESTING = "the away server is to begin the syndication"
    RELAYING = "the other side is to bring the answer"
    RELAYED = "the server of this side is to answer"
    PASSED = "it went across; nothing has to come back"
    ANSWERED = "the answer is on its way, or went across"
    UNANSWERED = "the time is over"


_S = RelayState


def _incoming(relays: Mapping[type[Message], Relay]) -> Table:
    """Return the rows of what a side takes and hands over."""
    asked = [cls for cls, relay in relays.items() if relay.answers and relay.repeated]
    single = [cls for cls in relays if cls not in asked]
    return {
        **{(_S.NEW, cls): Step(_S.RELAYING, "pass_on") for cls in asked},
        **{(_S.RELAYING, cls): Step(_S.RELAYING, "same_request") for cls in asked},
        **{(_S.ANSWERED, cls): Step(_S.ANSWERED, "reply_again") for cls in asked},
        **{(_S.NEW, cls): Step(_S.PASSED, "pass_on") for cls in single},
        (_S.RELAYING, Word.ANSWER): Step(_S.ANSWERED, "reply"),
        (_S.RELAYING, Word.EXPIRE): Step(_S.UNANSWERED),
    }


def _outgoing(relays: Mapping[type[Message], Relay]) -> Table:
    """Return the rows of what a side sends for the other."""
    answers = dict.fromkeys(answer for relay in relays.values() for answer in relay.answers)
    return {
        **{(_S.RELAYED, answer): Step(_S.ANSWERED, "relay_answered") for answer in answers},
        **{(_S.ANSWERED, answer): Step(_S.ANSWERED) for answer in answers},
        (_S.RELAYED, Word.EXPIRE): Step(_S.UNANSWERED, "relay_unanswered"),
        (_S.PASSED, Status.DATA_TYPE_UNKNOWN): Step(_S.ANSWERED, "relay_answered"),
    }


HOME_TABLE: Final[Table] = {
    **DEVICE_TABLE,
    **_incoming(TO_AWAY),
    **_outgoing(TO_HOME),
    (_S.NEW, SyndicationInit): Step(_S.OFFERED, "syndication_offered"),
    (_S.OFFERED, SyndicationInit): Step(_S.OFFERED),
    (_S.OFFERED, Word.ANSWER): Step(_S.ANSWERED, "reply"),
    (_S.OFFERED, Word.EXPIRE): Step(_S.UNANSWERED, "offer_expired"),
    (_S.OFFERED, Word.LEAVE): Step(_S.UNANSWERED, "offer_expired"),
    (_S.ANSWERED, SyndicationInit): Step(_S.ANSWERED, "reply_again"),
}
"""The home side: a device like any other that also takes what is for the away server."""

AWAY_TABLE: Final[Table] = {
    **DEVICE_TABLE,
    **_incoming(TO_HOME),
    **_outgoing(TO_AWAY),
    **{(_S.REQUESTING, status): Step(_S.ANSWERED, "request_answered") for status in JOIN_RESULTS},
    **{(_S.ANSWERED, status): Step(_S.ANSWERED) for status in JOIN_RESULTS},
    (_S.REQUESTING, Word.EXPIRE): Step(_S.UNANSWERED, "unanswered"),
    # Entries come under the token of their count.
    (_S.RELAYING, SyndicatedDeviceList): Step(_S.RELAYING, "pass_entry_on"),
    (_S.ANSWERED, SyndicatedDeviceList): Step(_S.ANSWERED, "pass_entry_on"),
    # The end is no question: it is confirmed at once, whatever becomes of the home server.
    (_S.NEW, SyndicatedTerminate): Step(_S.ANSWERED, "ended_by_away"),
}
"""The away side: it takes what is for the home server, and nothing that would change the device itself."""


class Side(Replying, DeviceSession):
    """One side of a syndication device; ``server`` is the only one that it knows."""

    outgoing: ClassVar[Mapping[type[Message], Relay]]

    def __init__(
        self,
        identity: int,
        servers: Collection[int],
        policy: Policy | None = None,
        first_sequence_id: int = 1,
        description: str = "",
        commanders: Collection[int] = (),
        version_floor: int | None = None,
    ) -> None:
        super().__init__(identity, servers, policy, first_sequence_id, description, commanders, version_floor)
        if len(self.servers) != 1:
            raise ValueError(f"a side of a syndication device has one server, not {len(self.servers)}")
        [self.server] = self.servers

    def cross(self, event: Crossing, now: float, nonce: bytes) -> list[Output]:
        """Do what the other side asks for; what cannot be done is told, and answered there if somebody waits."""
        try:
            match event:
                case Relayed():
                    return [*self._pass(event, now, nonce)]
                case RelayAnswered():
                    return self._bring_back(event, now)
        except PolicyError as error:
            if isinstance(event, Relayed):
                failed = RelayFailed(self.server, event.token, event.content.cls, str(error))
                return [failed, *failure(event, self.server)]
        return []

    # Effects: what comes in.

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Hand a message of this side's server to the other side."""
        asked = self._asked(exchange, cause, now)
        return [Relayed(self.server, exchange.token, asked.request, asked.expiry)]

    # Effects: what went out.

    def relay_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The server of this side answered what was passed on."""
        content = Content.of(cause)
        answer = Status(cause.status) if isinstance(cause, Response) else content.cls
        if exchange.request is None or answer not in self.outgoing[type(exchange.request)].answers:
            raise PolicyError(f"{content.cls.__name__} does not answer what was passed on under this token")
        return [RelayAnswered(self.server, exchange.token, exchange.detail, content)]

    def relay_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The server of this side did not answer in time; whoever asked has given up as well."""
        return self.unanswered(exchange, cause, now)

    # Mechanism.

    def _pass(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        cls, fields = event.content.cls, dict(event.content.fields)
        relay = self.outgoing.get(cls)
        if relay is None:
            raise PolicyError(f"{cls.__name__} does not go this way")
        if now >= event.expiry:
            raise PolicyError(f"{cls.__name__} has expired")
        state = _S.RELAYED if relay.repeated else _S.PASSED
        lifetime, resend, origin = event.expiry - now, relay.repeated, event.token
        return self._ask(self.server, state, cls, now, nonce, lifetime, resend=resend, detail=origin, **fields)

    def _bring_back(self, event: RelayAnswered, now: float) -> list[Output]:
        """Answer what came in here; an answer that comes too late goes nowhere."""
        exchange = self._partner(self.server).exchanges.get(event.origin)
        if exchange is not None:
            return self._drive(self.server, event.origin, Word.ANSWER, event.content, now)
        if event.content == Content.status(Status.DATA_TYPE_UNKNOWN):
            return self.refuse_data(self.server, event.origin, now)  # values are not remembered
        return []


class HomeSide(Side):
    """The side of the home server. It is a device like any other besides."""

    table: ClassVar[Table] = HOME_TABLE
    outgoing = TO_HOME
    volatile = Side.volatile | {_S.OFFERED}  # home asks again, and so the owner is asked again
    openings = {
        **DeviceSession.openings,
        SyndicationInit: Opening(_S.NEW),
        **{cls: Opening(_S.NEW) for cls in TO_AWAY},
    }
    _listing: tuple[bytes, bytes] | None = None  # the token of the newest count, there and here
    _offered = 0  # the sequence id of home's newest offer
    _ended = 0  # that of its newest word that it is over

    def answer_init(self, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a SyndicationOffered with JOIN_SUCCESS, JOIN_REFUSED or JOIN_FAIL."""
        check_status(status, JOIN_RESULTS)
        return self._drive(self.server, token, Word.ANSWER, Content.status(status), now)

    def syndication_offered(self, exchange: Exchange, cause: SyndicationInit, now: Now) -> list[Output]:
        """Home wants a syndication."""
        if cause.sequence_id < self._ended:
            raise PolicyError("home has ended the syndication since it asked for it")
        self._offered = max(self._offered, cause.sequence_id)
        self._asked(exchange, cause, now)
        return [SyndicationOffered(self.server, exchange.token, cause.url, cause.sealed)]

    def offer_expired(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Home does not wait any more: it took too long to get in, we have left, or home has ended it."""
        return [SyndicationEnded(self.server, exchange.token)]

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """See :meth:`Side.pass_on`; home's end also ends what is only offered, which nobody there knows of yet."""
        outputs: list[Output] = []
        if isinstance(cause, SyndicatedEndRequest):
            self._ended = max(self._ended, cause.sequence_id)
            for offer in exchange.partner.exchanges.values():
                if offer.state is _S.OFFERED and self._offered < cause.sequence_id:
                    outputs += self._take(offer, self.table[_S.OFFERED, Word.LEAVE], None, now)
        return [*outputs, *super().pass_on(exchange, cause, now)]

    def _pass(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        """Pass a message on; an entry of the list goes under the token of its count."""
        if event.content.cls is SyndicatedDeviceList:
            return self._pass_entry(event, now)
        sends = super()._pass(event, now, nonce)
        if event.content.cls is SyndicatedDeviceCount:
            self._listing = event.token, sends[0].message.token
            for other in list(self._partner(self.server).exchanges.values()):
                if isinstance(other.request, SyndicatedDeviceCount) and other.token != sends[0].message.token:
                    self._forget(other)  # sent again, it would pass for newer than this one
        return sends

    def _pass_entry(self, event: Relayed, now: float) -> list[Send]:
        partner = self._partner(self.server)
        if self._listing is None or self._listing[0] != event.token or not partner.member:
            raise PolicyError("the entry belongs to no list that was passed on")
        listing = Exchange(partner, self._listing[1], _S.PASSED, now, mine=True)
        return [self._send(listing, event.content.cls, **dict(event.content.fields))]


_ORDINARY: Final = (
    Action,
    Data,
    IdRequest,
    TerminateCommand,
    DeregisterCommand,
    HumanJoinResponse,
    ObservedJoinResponse,
)
"""What the away side takes like any device."""


class AwaySide(Side):
    """The side of the away server, which may neither update this device nor send it elsewhere.

    ``syndicated`` tells whether there is a syndication.
    """

    table: ClassVar[Table] = AWAY_TABLE
    outgoing = TO_AWAY
    openings = {
        **{cls: opening for cls, opening in DeviceSession.openings.items() if cls in _ORDINARY},
        SyndicatedDeviceCount: Opening(_S.NEW),
        SyndicatedDeviceList: Opening(_S.NEW, remembered=False),
        SyndicatedData: Opening(_S.NEW, remembered=False),
        SyndicatedTerminate: Opening(_S.NEW),
    }
    repeatable = DeviceSession.repeatable | {SyndicationRequest}
    syndicated = False
    _listing = b""  # the token of the newest count
    _counted = 0  # its sequence id

    def request_syndication(self, sealed: bytes, now: float, nonce: bytes, lifetime: float | None = None) -> list[Send]:
        """Ask the away server to begin; ``sealed`` is home's value, sealed to it. SyndicationAnswered follows.

        A deployed away server gives no answer: there is a syndication when it sends its first word.
        """
        return self._ask(self.server, _S.REQUESTING, SyndicationRequest, now, nonce, lifetime, sealed=sealed)

    # Effects.

    def request_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The away server begins the syndication, or does not want it; its first word is as good as an answer."""
        status = Status(cause.status) if isinstance(cause, Response) else Status.JOIN_SUCCESS
        self.syndicated = status is Status.JOIN_SUCCESS
        return [SyndicationAnswered(self.server, exchange.token, status)]

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Hand a message of the away server to the home side, if there is a syndication."""
        if isinstance(cause, SyndicatedDeviceList):
            return self.pass_entry_on(exchange, cause, now)
        if isinstance(cause, SyndicatedDeviceCount) and cause.sequence_id < self._counted:
            raise PolicyError("the count is older than one that was passed on")
        begun = self._heard(exchange.partner, cause, now)
        if isinstance(cause, SyndicatedDeviceCount):
            self._counted, self._listing = cause.sequence_id, exchange.token
        return [*begun, *super().pass_on(exchange, cause, now)]

    def pass_entry_on(self, exchange: Exchange, cause: SyndicatedDeviceList, now: Now) -> list[Output]:
        """Hand an entry of the list over, under the token of its count."""
        # Deployed servers give every entry a token of its own.
        if exchange.token != self._listing and tokens.parse(exchange.token) is not None:
            raise PolicyError("the entry belongs to another list of devices than the one that counts")
        if cause.device_sequence == 0 and self._binds(exchange.partner):
            raise PolicyError("the list has no number 0: only those of deployed servers may count from there")
        begun = self._heard(exchange.partner, cause, now)
        expiry = good_until(self._listing, self.policy, now.time)
        return [*begun, Relayed(self.server, self._listing, Content.of(cause), expiry)]

    def ended_by_away(self, exchange: Exchange, cause: SyndicatedTerminate, now: Now) -> list[Output]:
        """The away server ended the syndication."""
        outputs = self._heard(exchange.partner, cause, now)
        outputs += Side.pass_on(self, exchange, cause, now)
        outputs += self.reply(exchange, Content.status(Status.RESIGN_SUCCESS), now)
        self.syndicated = False
        return [*outputs, SyndicationEnded(self.server, exchange.token)]

    def relay_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """See :meth:`Side.relay_answered`; the answer to home's end is the end."""
        outputs = super().relay_answered(exchange, cause, now)
        return [*outputs, *self._end_if_asked(exchange)]

    def relay_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """See :meth:`Side.relay_unanswered`; home's end needs no confirmation."""
        return [*super().relay_unanswered(exchange, cause, now), *self._end_if_asked(exchange)]

    def leaving_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """See :meth:`DeviceSession.leaving_unanswered`."""
        return [*super().leaving_unanswered(exchange, cause, now), *self._lose(exchange.token, now.time)]

    # Mechanism.

    def _heard(self, partner: Partner, cause: Message, now: Now) -> list[Output]:
        """See that there is a syndication; word of the away server is as good as an answer to our request."""
        if self.syndicated:
            return []
        waiting = [other for other in partner.exchanges.values() if other.state is _S.REQUESTING]
        if not waiting:
            raise PolicyError(f"there is no syndication with {self.server:x}")
        step = self.table[_S.REQUESTING, Status.JOIN_SUCCESS]
        return [output for other in waiting for output in self._take(other, step, cause, now)]

    def _pass(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        if not self.syndicated:
            raise PolicyError(f"there is no syndication with {self.server:x}")
        if ("req_id", RESEND) in event.content.fields and not self._binds(self._partner(self.server)):
            raise PolicyError("a deployed server would take the request for the list for one of its own")
        return super()._pass(event, now, nonce)

    def _leave(self, exchange: Exchange, cause: Message, now: float) -> list[Output]:
        return [*super()._leave(exchange, cause, now), *self._lose(exchange.token, now)]

    def _lose(self, token: bytes, now: float) -> list[Output]:
        """Tell home that the away server is gone, in its place."""
        if not self.syndicated:
            return []
        self.syndicated = False
        gone = Relayed(self.server, token, Content(SyndicatedTerminate, ()), now + self.policy.lifetime)
        return [gone, SyndicationEnded(self.server, token)]

    def _end_if_asked(self, exchange: Exchange) -> list[Output]:
        if not isinstance(exchange.request, SyndicatedEndRequest) or not self.syndicated:
            return []
        self.syndicated = False
        return [SyndicationEnded(self.server, exchange.token)]


def failure(event: Crossing, peer: int) -> list[Output]:
    """Return what the other side is to be told when ``event`` does not get to ``peer``: nothing if nobody waits."""
    if not isinstance(event, Relayed):
        return []
    status = {**TO_AWAY, **TO_HOME}[event.content.cls].failure
    return [] if status is None else [RelayAnswered(peer, b"", event.token, Content.status(status))]

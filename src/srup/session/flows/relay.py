"""A syndication device: two devices in one, on two networks that never meet (docs/protocol/flows.md#f-70; T16).

Each side is a session of its own, with its own identity, server, counters and window, and its owner gives each a key
and a broker of its own. All that goes across are events: what one side puts out as a :class:`Crossing`, its owner
hands to the other side's ``cross``. It carries a message's content and never its header, so whatever leaves a side has
that side's identity, sequence id and token, and is signed with its key.

Which messages cross, and in which direction, stands in ``TO_AWAY`` and ``TO_HOME``. A request goes on under a token of
the next hop and is remembered, so that a repetition does not cross twice and the answer finds its way back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from ... import tokens
from ...errors import PolicyError
from ...messages import (
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
from ...wire import Status
from ..events import Event, RelayFailed, SyndicationAnswered, SyndicationEnded, SyndicationOffered
from ..exchange import Exchange, Peer
from ..flow import Now, Output, Send
from ..freshness import Offers
from ..policy import check_status
from ..syndications import ACTION_RESULTS, END_RESULTS, JOIN_RESULTS, RESEND
from ..table import Cause, ExchangeStart, State, Table, Transition, Trigger
from .reply import Content, Replying, good_until

if TYPE_CHECKING:
    from ..relay import Side

__all__ = [
    "TO_AWAY",
    "TO_HOME",
    "AwayRelay",
    "Crossing",
    "HomeRelay",
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

    answers: tuple[Cause, ...] = ()
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


class RelayState(State):
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
        **{(_S.NEW, cls): Transition(_S.RELAYING, "pass_on") for cls in asked},
        **{(_S.RELAYING, cls): Transition(_S.RELAYING, "same_request") for cls in asked},
        **{(_S.ANSWERED, cls): Transition(_S.ANSWERED, "reply_again") for cls in asked},
        **{(_S.NEW, cls): Transition(_S.PASSED, "pass_on") for cls in single},
        (_S.RELAYING, Trigger.ANSWER): Transition(_S.ANSWERED, "reply"),
        (_S.RELAYING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
    }


def _outgoing(relays: Mapping[type[Message], Relay]) -> Table:
    """Return the rows of what a side sends for the other."""
    answers = dict.fromkeys(answer for relay in relays.values() for answer in relay.answers)
    return {
        **{(_S.RELAYED, answer): Transition(_S.ANSWERED, "relay_answered") for answer in answers},
        **{(_S.ANSWERED, answer): Transition(_S.ANSWERED) for answer in answers},
        (_S.RELAYED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "relay_unanswered"),
        (_S.PASSED, Status.DATA_TYPE_UNKNOWN): Transition(_S.ANSWERED, "relay_answered"),
    }


class RelayFlow(Replying):
    """What one side of a syndication device relays."""

    session: "Side"
    states = RelayState
    outgoing: ClassVar[Mapping[type[Message], Relay]]

    def cross(self, event: Crossing, now: float, nonce: bytes) -> list[Output]:
        """Do what the other side asks for; what cannot be done is told, and answered there if somebody waits."""
        try:
            match event:
                case Relayed():
                    return [*self._pass_on(event, now, nonce)]
                case RelayAnswered():
                    return self._bring_back(event, now)
        except PolicyError as error:
            if isinstance(event, Relayed):
                failed = RelayFailed(self.session.server, event.token, event.content.cls, str(error))
                return [failed, *failure(event, self.session.server)]
        return []

    # Effects: what comes in.

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Hand a message of this side's server to the other side."""
        asked = self.ask_for(exchange, cause, now)
        passed = Relayed(self.session.server, exchange.token, asked.request, asked.expiry)
        if exchange.state is _S.PASSED:
            self.forget_request(exchange, cause, now)
        return [passed]

    # Effects: what went out.

    def relay_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The server of this side answered what was passed on."""
        content = Content.of(cause)
        answer = Status(cause.status) if isinstance(cause, Response) else content.cls
        if exchange.request is None or answer not in self.outgoing[type(exchange.request)].answers:
            raise PolicyError(f"{content.cls.__name__} does not answer what was passed on under this token")
        return [RelayAnswered(self.session.server, exchange.token, exchange.detail, content)]

    def relay_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The server of this side did not answer in time; whoever asked has given up as well."""
        return self.unanswered(exchange, cause, now)

    # Mechanism.

    def _pass_on(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        cls, fields = event.content.cls, dict(event.content.fields)
        relay = self.outgoing.get(cls)
        if relay is None:
            raise PolicyError(f"{cls.__name__} does not go this way")
        if self.session.unix(now) >= event.expiry:
            raise PolicyError(f"{cls.__name__} has expired")
        state = _S.RELAYED if relay.repeated else _S.PASSED
        lifetime, resend, origin = event.expiry - self.session.unix(now), relay.repeated, event.token
        return self.session.ask(
            self.session.server, state, cls, now, nonce, lifetime, resend=resend, detail=origin, **fields
        )

    def _bring_back(self, event: RelayAnswered, now: float) -> list[Output]:
        """Answer what came in here; an answer that comes too late goes nowhere."""
        exchange = self.session.peer(self.session.server).exchanges.get(event.origin)
        if exchange is not None:
            return self.session.decide(self.session.server, event.origin, Trigger.ANSWER, event.content, now)
        if event.content == Content.status(Status.DATA_TYPE_UNKNOWN):
            return self.session.refuse_data(self.session.server, event.origin, now)  # values are not remembered
        return []


class HomeRelay(RelayFlow):
    """The home side's relays."""

    table = {
        **_incoming(TO_AWAY),
        **_outgoing(TO_HOME),
        (_S.NEW, SyndicationInit): Transition(_S.OFFERED, "syndication_offered"),
        (_S.OFFERED, SyndicationInit): Transition(_S.OFFERED),
        (_S.OFFERED, Trigger.ANSWER): Transition(_S.ANSWERED, "reply"),
        (_S.OFFERED, Trigger.EXPIRE): Transition(_S.UNANSWERED, "offer_expired"),
        (_S.OFFERED, Trigger.LEAVE): Transition(_S.UNANSWERED, "offer_expired"),
        (_S.ANSWERED, SyndicationInit): Transition(_S.ANSWERED, "reply_again"),
    }
    outgoing = TO_HOME
    starts = {
        SyndicationInit: ExchangeStart(_S.NEW),
        **{cls: ExchangeStart(_S.NEW) for cls in TO_AWAY},
    }
    volatile = frozenset({_S.OFFERED})  # home asks again, and so the owner is asked again
    _listing: tuple[bytes, bytes] | None = None  # the token of the newest count, there and here

    def answer_init(self, token: bytes, status: Status, now: float) -> list[Output]:
        """Answer a SyndicationOffered with JOIN_SUCCESS, JOIN_REFUSED or JOIN_FAIL."""
        check_status(status, JOIN_RESULTS)
        return self.session.decide(self.session.server, token, Trigger.ANSWER, Content.status(status), now)

    def syndication_offered(self, exchange: Exchange, cause: SyndicationInit, now: Now) -> list[Output]:
        """Home wants a syndication; it is told no more of the one before, which would pass for this one."""
        if cause.sequence_id < max(self._offers(exchange.peer)):
            raise PolicyError("home has ended the syndication since it asked for it, or has asked for another one")
        self._note(exchange.peer, Offers(begun=cause.sequence_id))
        self._listing = None
        for former in exchange.peer.in_state(_S.RELAYED):
            self.session.known.forget(former)
        self.ask_for(exchange, cause, now)
        return [SyndicationOffered(self.session.server, exchange.token, cause.url, cause.sealed)]

    def offer_expired(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """Home does not wait any more: it took too long to get in, we have left, or home has ended it."""
        return [SyndicationEnded(self.session.server, exchange.token)]

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """See :meth:`RelayFlow.pass_on`; home's end also ends what is only offered, which nobody there knows of yet."""
        offered = self._offers(exchange.peer).begun
        if cause.sequence_id < offered:
            raise PolicyError("home asked for this before it offered the present syndication")
        outputs: list[Output] = []
        if isinstance(cause, SyndicatedEndRequest):
            self._note(exchange.peer, Offers(ended=cause.sequence_id))
            if offered < cause.sequence_id:
                offers = exchange.peer.in_state(_S.OFFERED)
                outputs += self.session.step_all(offers, Trigger.LEAVE, None, now)
        return [*outputs, *super().pass_on(exchange, cause, now)]

    @staticmethod
    def _offers(peer: Peer) -> Offers:
        """Return what home has said last, under the key that signed what is heard or the one that counts."""
        return (peer.heard.offers or Offers()).newest(peer.horizon.offers or Offers())

    def _note(self, peer: Peer, said: Offers) -> None:
        """Remember what home has said about its syndication, for as long as anything of its key (T34)."""
        peer.heard.offers = said.newest(peer.heard.offers or Offers())
        capped = Offers(*(peer.counting(number) for number in said))
        peer.horizon.offers = capped.newest(peer.horizon.offers or Offers())
        self.session.known.mark_freshness(peer.identity)

    def _pass_on(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        """Pass a message on; an entry of the list goes under the token of its count."""
        if event.content.cls is SyndicatedDeviceList:
            return self._pass_entry(event, now)
        sends = super()._pass_on(event, now, nonce)
        if event.content.cls is SyndicatedDeviceCount:
            self._listing = event.token, sends[0].message.token
            for other in list(self.session.peer(self.session.server).exchanges.values()):
                if isinstance(other.request, SyndicatedDeviceCount) and other.token != sends[0].message.token:
                    self.session.known.forget(other)  # sent again, it would pass for newer than this one
        return sends

    def _pass_entry(self, event: Relayed, now: float) -> list[Send]:
        peer = self.session.peer(self.session.server)
        if self._listing is None or self._listing[0] != event.token or not peer.member:
            raise PolicyError("the entry belongs to no list that was passed on")
        listing = Exchange(peer, self._listing[1], _S.PASSED, now, mine=True)
        return [self.session.send(listing, event.content.cls, **dict(event.content.fields))]


class AwayRelay(RelayFlow):
    """The away side's relays; ``syndicated`` says whether there is a syndication."""

    table = {
        **_incoming(TO_HOME),
        **_outgoing(TO_AWAY),
        **{(_S.REQUESTING, status): Transition(_S.ANSWERED, "request_answered") for status in JOIN_RESULTS},
        **{(_S.ANSWERED, status): Transition(_S.ANSWERED) for status in JOIN_RESULTS},
        (_S.REQUESTING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
        # Entries come under the token of their count.
        (_S.RELAYING, SyndicatedDeviceList): Transition(_S.RELAYING, "pass_entry_on"),
        (_S.ANSWERED, SyndicatedDeviceList): Transition(_S.ANSWERED, "pass_entry_on"),
        # The end is no question: it is confirmed at once, whatever becomes of the home server.
        (_S.NEW, SyndicatedTerminate): Transition(_S.ANSWERED, "ended_by_away"),
    }
    outgoing = TO_AWAY
    starts = {
        SyndicatedDeviceCount: ExchangeStart(_S.NEW),
        SyndicatedDeviceList: ExchangeStart(_S.NEW, remembered=False),
        SyndicatedData: ExchangeStart(_S.NEW, remembered=False),
        SyndicatedTerminate: ExchangeStart(_S.NEW),
    }
    idempotent = frozenset({SyndicationRequest})
    syndicated = False
    _listing = b""  # the token of the newest count
    _counted = 0  # its sequence id
    _began = 0  # that of the message by which the away server began: what it said before belongs to another syndication

    def request_syndication(self, sealed: bytes, now: float, nonce: bytes, lifetime: float | None = None) -> list[Send]:
        """Ask the away server to begin; ``sealed`` is home's value, sealed to it. SyndicationAnswered follows.

        A deployed away server gives no answer: there is a syndication when it sends its first word.
        """
        return self.session.ask(
            self.session.server, _S.REQUESTING, SyndicationRequest, now, nonce, lifetime, sealed=sealed
        )

    # Effects.

    def request_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The away server begins the syndication, or does not want it; its first word is as good as an answer."""
        status = Status(cause.status) if isinstance(cause, Response) else Status.JOIN_SUCCESS
        self.syndicated = status is Status.JOIN_SUCCESS
        self._began = exchange.peer.counting(cause.sequence_id)
        return [SyndicationAnswered(self.session.server, exchange.token, status)]

    def pass_on(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Hand a message of the away server to the home side, if there is a syndication."""
        if isinstance(cause, SyndicatedDeviceList):
            return self.pass_entry_on(exchange, cause, now)
        if isinstance(cause, SyndicatedDeviceCount) and cause.sequence_id < self._counted:
            raise PolicyError("the count is older than one that was passed on")
        begun = self._heard(exchange.peer, cause, now)
        if isinstance(cause, SyndicatedDeviceCount):
            self._counted, self._listing = exchange.peer.counting(cause.sequence_id), exchange.token
        return [*begun, *super().pass_on(exchange, cause, now)]

    def pass_entry_on(self, exchange: Exchange, cause: SyndicatedDeviceList, now: Now) -> list[Output]:
        """Hand an entry of the list over, under the token of its count."""
        # Deployed servers give every entry a token of its own.
        if exchange.token != self._listing and tokens.parse(exchange.token) is not None:
            raise PolicyError("the entry belongs to another list of devices than the one that counts")
        if cause.device_sequence == 0 and self.session.binds_tokens(exchange.peer):
            raise PolicyError("the list has no number 0: only those of deployed servers may count from there")
        begun = self._heard(exchange.peer, cause, now)
        expiry = good_until(self._listing, self.session.policy, self.session.unix(now.time))
        return [*begun, Relayed(self.session.server, self._listing, Content.of(cause), expiry)]

    def ended_by_away(self, exchange: Exchange, cause: SyndicatedTerminate, now: Now) -> list[Output]:
        """The away server ended the syndication."""
        outputs = self._heard(exchange.peer, cause, now)
        outputs += RelayFlow.pass_on(self, exchange, cause, now)
        outputs += self.reply(exchange, Content.status(Status.RESIGN_SUCCESS), now)
        self.syndicated = False
        return [*outputs, SyndicationEnded(self.session.server, exchange.token)]

    def relay_answered(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """See :meth:`RelayFlow.relay_answered`; the answer to home's end is the end."""
        outputs = super().relay_answered(exchange, cause, now)
        return [*outputs, *self._end_if_asked(exchange)]

    def relay_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """See :meth:`RelayFlow.relay_unanswered`; home's end needs no confirmation."""
        return [*super().relay_unanswered(exchange, cause, now), *self._end_if_asked(exchange)]

    def on_membership_lost(self, peer: Peer, token: bytes, now: float) -> list[Output]:
        """Tell home that the away server is gone, in its place."""
        if not self.syndicated:
            return []
        self.syndicated = False
        server = self.session.server
        until = self.session.unix(now) + self.session.policy.lifetime
        gone = Relayed(server, token, Content(SyndicatedTerminate, ()), until)
        return [gone, SyndicationEnded(server, token)]

    # Mechanism.

    def _heard(self, peer: Peer, cause: Message, now: Now) -> list[Output]:
        """See that there is a syndication, and that the away server has said this in it.

        Word of a deployed one is as good as an answer to our request, for it gives none.
        """
        if self.syndicated and cause.sequence_id < self._began:
            raise PolicyError(f"{peer.identity:x} said this before the present syndication began")
        if self.syndicated:
            return []
        waiting = peer.in_state(_S.REQUESTING)
        if not waiting or self.session.binds_tokens(peer):
            raise PolicyError(f"there is no syndication with {self.session.server:x}")
        return self.session.step_all(waiting, Status.JOIN_SUCCESS, cause, now)

    def _pass_on(self, event: Relayed, now: float, nonce: bytes) -> list[Send]:
        if not self.syndicated:
            raise PolicyError(f"there is no syndication with {self.session.server:x}")
        if ("req_id", RESEND) in event.content.fields and not self.session.binds_tokens(
            self.session.peer(self.session.server)
        ):
            raise PolicyError("a deployed server would take the request for the list for one of its own")
        return super()._pass_on(event, now, nonce)

    def _end_if_asked(self, exchange: Exchange) -> list[Output]:
        if not isinstance(exchange.request, SyndicatedEndRequest) or not self.syndicated:
            return []
        self.syndicated = False
        return [SyndicationEnded(self.session.server, exchange.token)]


def failure(event: Crossing, peer: int) -> list[Output]:
    """Return what the other side is to be told when ``event`` does not get to ``peer``: nothing if nobody waits."""
    if not isinstance(event, Relayed):
        return []
    status = {**TO_AWAY, **TO_HOME}[event.content.cls].failure
    return [] if status is None else [RelayAnswered(peer, b"", event.token, Content.status(status))]

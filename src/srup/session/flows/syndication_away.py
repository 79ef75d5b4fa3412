"""Syndication, as the away server sees it: the home server commands devices of ours through a device of its own (T16).

We decide with whom (``syndication_devices``, then ``accept_syndication``), about which of our devices (the list), and
about every single request (``allow``, ``refuse``).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from struct import error as StructError
from struct import iter_unpack
from typing import TYPE_CHECKING, Any, Final

from ...errors import EncodeError, PolicyError
from ...messages import (
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
    SyndicationRequest,
)
from ...wire import Status
from ..events import (
    SyndicatedActionRequested,
    SyndicatedC2Requested,
    SyndicatedIdRequested,
    SyndicationAnswered,
    SyndicationEnded,
    SyndicationRequested,
)
from ..exchange import Exchange, Peer
from ..flow import Now, Output, Send
from ..policy import check_status
from ..syndications import (
    ACTION_RESULTS,
    JOIN_RESULTS,
    LIST_TURN,
    LISTING,
    MAX_RESEND,
    MAX_SHARED,
    RESEND,
    Role,
    Syndication,
)
from ..table import ExchangeStart, State, Transition, Trigger
from .action import ActionState
from .data import DataState
from .identify import IdentificationState
from .reply import Asked, Content, Replying

if TYPE_CHECKING:
    from ..syndication import SyndicationServerSession

__all__ = ["AwayState", "AwaySyndications"]


class AwayState(State):
    """Exchanges of a syndication, seen from the away server."""

    NEW = "nothing happened yet"
    DECIDING = "the owner is to say which devices are shared"
    SHARING = "home is to confirm how many devices there are"
    MODERATING = "the owner is to say whether it may be done"
    CARRYING = "the shared device is to do it"
    TERMINATING = "home is to confirm the end"
    ANSWERED = "the answer is on its way, or here"
    ENDED = "it is over"
    UNANSWERED = "the time is over"


_S = AwayState
_REQUESTS: Final = (SyndicatedAction, SyndicatedIdRequest, SyndicatedC2Request)


class AwaySyndications(Replying):
    """The syndications of a server as away."""

    session: "SyndicationServerSession"
    states = AwayState
    # What expires gets no answer: home's own time is over then.
    table = {
        (_S.NEW, SyndicationRequest): Transition(_S.DECIDING, "syndication_requested"),
        (_S.DECIDING, SyndicationRequest): Transition(_S.DECIDING),  # sealed anew, perhaps
        (_S.DECIDING, Trigger.ALLOW): Transition(_S.ANSWERED, "begin_sharing"),
        (_S.DECIDING, Trigger.ANSWER): Transition(_S.ANSWERED, "answer"),
        (_S.DECIDING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.ANSWERED, SyndicationRequest): Transition(_S.ANSWERED, "repeat_answer"),
        (_S.SHARING, Status.ACTION_SUCCESS): Transition(_S.ANSWERED),
        (_S.ANSWERED, Status.ACTION_SUCCESS): Transition(_S.ANSWERED),
        (_S.SHARING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
        **{(_S.NEW, cls): Transition(_S.MODERATING, "moderate") for cls in _REQUESTS},
        **{(_S.MODERATING, cls): Transition(_S.MODERATING, "same_request") for cls in _REQUESTS},
        **{(_S.CARRYING, cls): Transition(_S.CARRYING, "same_request") for cls in _REQUESTS},
        **{(_S.ANSWERED, cls): Transition(_S.ANSWERED, "reply_again") for cls in _REQUESTS},
        (_S.MODERATING, Trigger.ALLOW): Transition(_S.CARRYING, "carry"),
        (_S.MODERATING, Trigger.ANSWER): Transition(_S.ANSWERED, "reply"),
        (_S.MODERATING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.CARRYING, Trigger.ANSWER): Transition(_S.ANSWERED, "reply"),
        (_S.CARRYING, Trigger.EXPIRE): Transition(_S.UNANSWERED),
        (_S.DECIDING, Trigger.LEAVE): Transition(_S.UNANSWERED),
        (_S.MODERATING, Trigger.LEAVE): Transition(_S.UNANSWERED, "forget_request"),
        (_S.CARRYING, Trigger.LEAVE): Transition(_S.UNANSWERED, "forget_request"),
        (_S.NEW, SyndicatedEndRequest): Transition(_S.ENDED, "ended_by_home"),
        (_S.ENDED, SyndicatedEndRequest): Transition(_S.ENDED, "repeat_answer"),
        (_S.TERMINATING, Status.RESIGN_SUCCESS): Transition(_S.ENDED),
        (_S.ENDED, Status.RESIGN_SUCCESS): Transition(_S.ENDED),
        (_S.TERMINATING, Trigger.EXPIRE): Transition(_S.ENDED),
    }
    starts = {
        SyndicationRequest: ExchangeStart(_S.NEW),
        SyndicatedAction: ExchangeStart(_S.NEW),
        SyndicatedIdRequest: ExchangeStart(_S.NEW),
        SyndicatedC2Request: ExchangeStart(_S.NEW),
        SyndicatedEndRequest: ExchangeStart(_S.NEW),
    }
    volatile = frozenset({_S.DECIDING, _S.MODERATING})  # they ask again, and so the owner is asked again

    def tick(self, now: float) -> list[Output]:
        """Send more of the lists of ours."""
        outputs: list[Output] = []
        sending = self.session.syndications.unsent()
        for syndication in sending:
            try:
                outputs += self._more_entries(syndication, max(1, LIST_TURN // len(sending)))
            except PolicyError:  # no sequence id is left for that device
                syndication.unsent.clear()
        return outputs

    def deadlines(self) -> list[float]:
        """Return when :meth:`tick` has something to do; 0.0 is at once."""
        return [0.0 for _ in self.session.syndications.unsent()]

    def resume_list(self, device: int, number: int) -> None:
        """Go on with a list from this number on, after a restart."""
        syndication = self.session.syndications.by_device.get(device)
        if syndication is not None and syndication.role is Role.AWAY:
            self.session.syndications.to_send(syndication, (each for each in syndication.devices if each >= number))

    # What away can be told to do.

    def accept_syndication(
        self, device: int, token: bytes, devices: Iterable[int], now: float, nonce: bytes
    ) -> list[Output]:
        """Accept a SyndicationRequested and share these devices of ours."""
        return self.session.decide(device, token, Trigger.ALLOW, _checked(devices), now, nonce)

    def refuse_syndication(
        self, device: int, token: bytes, now: float, status: Status = Status.JOIN_REFUSED
    ) -> list[Output]:
        """Answer a SyndicationRequested with JOIN_REFUSED or JOIN_FAIL."""
        check_status(status, JOIN_RESULTS[1:])
        return self.session.decide(device, token, Trigger.ANSWER, status, now)

    def share(self, device: int, devices: Iterable[int], now: float, nonce: bytes) -> list[Output]:
        """Share these devices from now on, and no others; home gets a new list."""
        return self._share(self._required(self.session.peer(device)), _checked(devices), now, nonce)

    def allow(self, device: int, token: bytes, now: float, nonce: bytes) -> list[Output]:
        """Let a request of home's happen: it goes to the shared device, and the answer back. A C2 request is done."""
        return self.session.decide(device, token, Trigger.ALLOW, None, now, nonce)

    def refuse(self, device: int, token: bytes, now: float, status: Status = Status.ACTION_FAIL) -> list[Output]:
        """Answer a request of home's with ACTION_FAIL or ACTION_UNKNOWN."""
        check_status(status, ACTION_RESULTS[1:])
        return self.session.decide(device, token, Trigger.ANSWER, Content.status(status), now)

    def terminate_syndication(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """End a syndication as away: nothing is shared and nothing is asked any more. The device remains joined."""
        peer = self.session.peer(device)
        self._required(peer)
        [send] = self.session.ask(device, _S.TERMINATING, SyndicatedTerminate, now, nonce, None)
        self._drop(peer, now)
        return [send, SyndicationEnded(device, send.message.token)]

    # Effects: the syndication.

    def syndication_requested(self, exchange: Exchange, cause: SyndicationRequest, now: Now) -> list[Output]:
        """A syndication device wants to begin; only one that is registered as such may."""
        identity = exchange.peer.identity
        known = self.session.syndications.by_device.get(identity)
        if identity not in self.session.syndication_devices or (known is not None and known.role is Role.HOME):
            raise PolicyError(f"{identity:x} is not registered as a syndication device here")
        if self.session.freshness.overtaken(exchange.peer, cause) or (known and cause.sequence_id < known.began):
            raise PolicyError(f"{identity:x} asked for this before it joined, or before the present syndication began")
        exchange.detail = exchange.peer.counting(cause.sequence_id)
        return [SyndicationRequested(identity, exchange.token, cause.sealed)]

    def begin_sharing(self, exchange: Exchange, cause: tuple[int, ...], now: Now) -> list[Output]:
        """The owner accepts; what this device had before is replaced."""
        identity = exchange.peer.identity
        if identity not in self.session.syndication_devices:
            raise PolicyError(f"{identity:x} is not registered as a syndication device any more")
        outputs = self.answer(exchange, Status.JOIN_SUCCESS, now)
        syndication = Syndication(identity, Role.AWAY, began=exchange.detail or 0)
        outputs += self._send_list(syndication, cause, now.time, now.nonce)
        if identity in self.session.syndications.by_device:
            self._drop(exchange.peer, now.time)
        self._stop_terminating(exchange.peer)
        self.session.syndications.begin(syndication, dict(enumerate(cause, 1)))
        self._send_later(syndication)
        return [SyndicationAnswered(identity, exchange.token, Status.JOIN_SUCCESS), *outputs]

    def ended_by_home(self, exchange: Exchange, cause: SyndicatedEndRequest, now: Now) -> list[Output]:
        """Home ended the syndication, or the one before: that is over in any case."""
        syndication = self._required(exchange.peer)
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        if cause.sequence_id < syndication.began:
            return outputs
        self._drop(exchange.peer, now.time)
        return [*outputs, SyndicationEnded(exchange.peer.identity, exchange.token)]

    # Effects: what home asks for.

    def moderate(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Home asks for something. The list is sent at once; what concerns devices that are not shared is unknown."""
        syndication = self._required(exchange.peer)
        if cause.sequence_id < syndication.began:
            raise PolicyError("home asked for this before the present syndication began")
        self.ask_for(exchange, cause, now)
        identity, token = exchange.peer.identity, exchange.token
        match cause:
            case SyndicatedC2Request(req_id=req_id) if req_id == RESEND:
                return self._resend(syndication, exchange, cause.data, now)
            case SyndicatedC2Request():
                return [SyndicatedC2Requested(identity, token, cause.req_id, cause.data)]
            case SyndicatedAction(target_id=target) if syndication.shares(target):
                return [SyndicatedActionRequested(identity, token, target, cause.action_id)]
            case SyndicatedIdRequest(target_id=target) if syndication.shares(target):
                return [SyndicatedIdRequested(identity, token, target)]
            case _:
                return self._reply_at_once(exchange, Status.ACTION_UNKNOWN, now)

    def carry(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The owner lets it happen: ask the shared device; a C2 request the owner has carried out."""
        syndication = self._required(exchange.peer)
        asked: Asked = exchange.detail
        if self.session.unix(now.time) >= asked.expiry:
            raise PolicyError("it is too late: home does not wait for this any more")
        cls, fields = asked.request.cls, dict(asked.request.fields)
        if cls is SyndicatedC2Request:
            return self._reply_at_once(exchange, Status.ACTION_SUCCESS, now)
        target = fields.pop("target_id")
        if not syndication.shares(target) or not self.session.is_member(target):
            return self._reply_at_once(exchange, Status.ACTION_FAIL, now)
        state, request = _CARRIED[cls]
        lifetime = asked.expiry - self.session.unix(now.time)
        return [*self.session.ask(target, state, request, now.time, now.nonce, lifetime, detail=exchange, **fields)]

    # What shared devices say.

    def on_answer(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Tell home what a shared device answered to us, if home wanted to know, unless the time is over."""
        origin = exchange.detail
        if not isinstance(origin, Exchange) or (origin.state, Trigger.ANSWER) not in self.session.table:
            return []
        content = Content(SyndicatedData, ())
        match cause:
            case Response(status=status):
                content = Content.status(Status(status))
            case Data(data_id=data_id, data=data):
                source = exchange.peer.identity
                content = Content(SyndicatedData, (("data_id", data_id), ("data", data), ("source_id", source)))
        return self.session.step(origin, Trigger.ANSWER, content, now)

    def on_value(self, peer: Peer, value: Data, now: Now) -> list[Output]:
        """Pass a value of a shared device on to home."""
        outputs: list[Output] = []
        for device in self.shares(peer.identity):
            with suppress(PolicyError):  # no sequence id is left for that device, which is not the trouble of this one
                outputs += self._pass_on(device, peer.identity, value, now)
        return outputs

    def shares(self, target: int) -> list[int]:
        """Return the syndication devices that a device of ours is shared through."""
        through = self.session.syndications.through(target)
        return [syndication.device for syndication in through if self.session.is_member(syndication.device)]

    # A membership that ends takes the syndication with it.

    def on_revoked(self, peer: Peer, now: float) -> list[Output]:
        """The key of a peer counts no longer."""
        if not self._is_away_with(peer):
            return []
        ended = self.session.syndications.drop(peer.identity)
        asked = [] if ended is None else self._ask_no_more(ended, self._asked(peer), now)
        return [SyndicationEnded(peer.identity, b""), *asked]

    def on_membership_lost(self, peer: Peer, token: bytes, now: float) -> list[Output]:
        """A peer and we are not joined any more."""
        if not self._is_away_with(peer):
            return []
        return [*self._drop(peer, now), SyndicationEnded(peer.identity, token)]

    # Mechanism.

    def _is_away_with(self, peer: Peer) -> bool:
        known = self.session.syndications.by_device.get(peer.identity)
        return known is not None and known.role is Role.AWAY

    def _required(self, peer: Peer) -> Syndication:
        return self.session.syndications.required(peer, Role.AWAY)

    def _drop(self, peer: Peer, now: float) -> list[Output]:
        """Forget a syndication, and end what was still asked in it: nothing of that is done or answered any more."""
        ended = self.session.syndications.drop(peer.identity)
        devices = self._asked(peer)
        self.session.step_all(peer.in_state(_S.MODERATING, _S.CARRYING), Trigger.LEAVE, None, Now(now, b""))
        return [] if ended is None else self._ask_no_more(ended, devices, now)

    def _stop_terminating(self, peer: Peer) -> None:
        """Repeat the end of an earlier syndication no more: it would come after the beginning, and undo it."""
        for ending in peer.in_state(_S.TERMINATING):
            ending.retry = 0.0

    def _asked(self, peer: Peer) -> list[int]:
        """Return the devices that are asked for home now, those too that are not shared any more."""
        asked = [each.detail.request.fields for each in peer.in_state(_S.CARRYING)]
        return [value for fields in asked for name, value in fields if name == "target_id"]

    def _ask_no_more(self, syndication: Syndication, asked: Iterable[int], now: float) -> list[Output]:
        """End what these devices, and those that are shared, were asked for home."""
        devices = dict.fromkeys([*syndication.devices.values(), *asked])
        ours = [each for device in devices for each in self.session.known.open_of(device)]
        carried = [each for each in ours if isinstance(each.detail, Exchange)]
        return self.session.abandon([each for each in carried if each.detail.peer.identity == syndication.device], now)

    def _share(self, syndication: Syndication, devices: tuple[int, ...], now: float, nonce: bytes) -> list[Output]:
        """Share these devices, and send the list of them."""
        outputs = self._send_list(syndication, devices, now, nonce)
        self.session.syndications.share(syndication, dict(enumerate(devices, 1)))
        self._send_later(syndication)
        return outputs

    def _send_list(self, syndication: Syndication, devices: tuple[int, ...], now: float, nonce: bytes) -> list[Output]:
        """Send a new list: the count, which is to be confirmed, and the first entries under its token."""
        lifetime, count = self.session.policy.update_lifetime, len(devices)
        [send] = self.session.ask(
            syndication.device, _S.SHARING, SyndicatedDeviceCount, now, nonce, lifetime, count=count
        )
        syndication.token, syndication.count = send.message.token, count
        syndication.expiry = self.session.unix(now) + lifetime
        for other in self.session.peer(syndication.device).in_state(_S.SHARING):
            if other.token != syndication.token:
                self.session.known.forget(other)  # sent again, it would pass for newer than this one
        return [send, *self._entries(syndication, enumerate(devices[:LIST_TURN], 1))]

    def _send_later(self, syndication: Syndication) -> None:
        """Send the entries of a new list in later turns that are none of its first."""
        self.session.syndications.to_send(syndication, (each for each in syndication.devices if each > LIST_TURN))
        self._note_unsent(syndication)

    def _more_entries(self, syndication: Syndication, limit: int) -> list[Send]:
        """Send so many entries of those that are to be sent."""
        numbers = syndication.take_unsent(limit)
        sends = self._entries(syndication, ((number, syndication.devices[number]) for number in numbers))
        self._note_unsent(syndication)
        return sends

    def _note_unsent(self, syndication: Syndication) -> None:
        following = next(iter(syndication.unsent), None)
        self.session.set_fact(syndication.device, LISTING, None if following is None else str(following))

    def _entries(self, syndication: Syndication, entries: Iterable[tuple[int, int]]) -> list[Send]:
        listing = Exchange(self.session.peer(syndication.device), syndication.token, _S.SHARING, 0.0, mine=True)
        return [
            self.session.send(listing, SyndicatedDeviceList, device_sequence=number, device_id=device)
            for number, device in entries
        ]

    def _pass_on(self, device: int, source: int, value: Data, now: Now) -> list[Send]:
        fields: dict[str, Any] = {"data_id": value.data_id, "data": value.data, "source_id": source}
        args = device, DataState.SENT, SyndicatedData, now.time, now.nonce, None
        return self.session.ask(*args, resend=False, **fields)

    def _resend(self, syndication: Syndication, exchange: Exchange, data: bytes, now: Now) -> list[Output]:
        """Send entries of the list again; the list itself if none is named or its token is not good any more."""
        try:
            numbers = tuple(number for (number,) in iter_unpack("<I", data))[:MAX_RESEND]
        except StructError:
            return self._reply_at_once(exchange, Status.ACTION_UNKNOWN, now)
        if now.time - syndication.resent < self.session.policy.first_retry:
            return self._reply_at_once(exchange, Status.ACTION_FAIL, now)  # it was sent just now (T9)
        syndication.resent = now.time
        outputs: list[Output]
        if not numbers or self.session.unix(now.time) >= syndication.expiry:
            outputs = self._share(syndication, tuple(syndication.devices.values()), now.time, now.nonce)
        else:
            known = (number for number in numbers if number in syndication.devices)
            self.session.syndications.to_send(syndication, known)
            outputs = [*self._more_entries(syndication, LIST_TURN)]
        return [*outputs, *self._reply_at_once(exchange, Status.ACTION_SUCCESS, now)]

    def _reply_at_once(self, exchange: Exchange, status: Status, now: Now) -> list[Output]:
        return self.session.step(exchange, Trigger.ANSWER, Content.status(status), now)


_CARRIED: Final[Mapping[type[Message], tuple[Enum, type[Message]]]] = {
    SyndicatedAction: (ActionState.ASKED, Action),
    SyndicatedIdRequest: (IdentificationState.IDENTIFYING, IdRequest),
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

"""Syndication, as the home server sees it: it commands a device that joins the away server (T16).

Whatever the syndication device brings belongs to the present syndication only if it was said after that began: what a
broker has held back, or the device has gone on repeating, is of an earlier one.
"""

from struct import pack
from typing import TYPE_CHECKING, Any, Final

from ... import tokens
from ...errors import EncodeError, PolicyError
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
)
from ...wire import IDENTIFICATION_RESPONSE, Status
from .. import retry
from ..events import (
    DevicesMissing,
    DevicesShared,
    IdentificationRefused,
    SyndicatedDataReceived,
    SyndicatedIdentified,
    SyndicationAnswered,
    SyndicationEnded,
    Unexpected,
)
from ..exchange import Exchange, Peer
from ..flow import Now, Output, Send
from ..syndications import ACTION_RESULTS, END_RESULTS, JOIN_RESULTS, MAX_RESEND, MAX_SHARED, RESEND, Role, Syndication
from ..table import ExchangeStart, State, Transition, Trigger
from .action import ActionState
from .data import DataState
from .reply import Replying

if TYPE_CHECKING:
    from ..syndication import SyndicationServerSession

__all__ = ["HomeState", "HomeSyndications"]


class HomeState(State):
    """Exchanges of a syndication, seen from the home server."""

    NEW = "nothing happened yet"
    STARTING = "the syndication device is to join the away server"
    STARTED = "it has joined, or said why not"
    LISTED = "the away server said how many devices it shares"
    IDENTIFYING = "a shared device is to say what it is"
    ANSWERED = "it has, or will not"
    ENDING = "the away server is to confirm the end"
    ENDED = "it is over"
    UNANSWERED = "the time is over"


_S = HomeState
_DISCLAIMED: Final = "it was over already"
_OURS: Final = SyndicationInit, SyndicatedAction, SyndicatedIdRequest, SyndicatedC2Request


class HomeSyndications(Replying):
    """The syndications of a server as home. Its actions and C2 requests have the rows of any action."""

    session: "SyndicationServerSession"
    states = HomeState
    table = {
        (_S.STARTING, Status.JOIN_SUCCESS): Transition(_S.STARTED, "syndication_begun"),
        (_S.STARTING, Status.JOIN_REFUSED): Transition(_S.STARTED, "syndication_failed"),
        (_S.STARTING, Status.JOIN_FAIL): Transition(_S.STARTED, "syndication_failed"),
        (_S.STARTING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "syndication_unanswered"),
        **{(_S.STARTED, status): Transition(_S.STARTED) for status in JOIN_RESULTS},
        (_S.NEW, SyndicatedDeviceCount): Transition(_S.LISTED, "devices_counted"),
        (_S.LISTED, SyndicatedDeviceCount): Transition(_S.LISTED, "repeat_answer"),
        (_S.NEW, SyndicatedDeviceList): Transition(_S.LISTED, "device_listed"),
        (_S.LISTED, SyndicatedDeviceList): Transition(_S.LISTED, "device_listed"),
        (_S.NEW, SyndicatedData): Transition(DataState.TAKEN, "syndicated_data_received"),
        (_S.IDENTIFYING, SyndicatedData): Transition(_S.ANSWERED, "syndicated_identified"),
        **{(_S.IDENTIFYING, status): Transition(_S.ANSWERED, "identification_refused") for status in ACTION_RESULTS},
        (_S.IDENTIFYING, Trigger.EXPIRE): Transition(_S.UNANSWERED, "unanswered"),
        (_S.ANSWERED, SyndicatedData): Transition(_S.ANSWERED),
        **{(_S.ANSWERED, status): Transition(_S.ANSWERED) for status in ACTION_RESULTS},
        **{(_S.ENDING, status): Transition(_S.ENDED, "end_confirmed") for status in END_RESULTS},
        **{(_S.ENDED, status): Transition(_S.ENDED) for status in END_RESULTS},
        (_S.ENDING, Trigger.EXPIRE): Transition(_S.ENDED, "end_unconfirmed"),
        (_S.NEW, SyndicatedTerminate): Transition(_S.ENDED, "terminated_by_away"),
        (_S.ENDED, SyndicatedTerminate): Transition(_S.ENDED, "repeat_answer"),
    }
    starts = {
        SyndicatedDeviceCount: ExchangeStart(_S.NEW),
        SyndicatedDeviceList: ExchangeStart(_S.NEW, remembered=False),
        SyndicatedData: ExchangeStart(_S.NEW, remembered=False),
        SyndicatedTerminate: ExchangeStart(_S.NEW),
    }

    def tick(self, now: float) -> list[Output]:
        """Tell which numbers of a list have not come, at growing intervals."""
        outputs: list[Output] = []
        for syndication in self.session.syndications.incomplete():
            if syndication.due is not None and syndication.due <= now:
                pause = retry.next_pause(self.session.policy, syndication.pause)
                self.session.syndications.expect_list(syndication, now, pause)
                peer = self.session.peer(syndication.device)
                repeats = self.session.binds_tokens(peer) and self.session.can_send(peer)
                outputs.append(DevicesMissing(syndication.device, syndication.token, syndication.missing, repeats))
        return outputs

    def deadlines(self) -> list[float]:
        """Return when :meth:`tick` has something to do."""
        waiting = self.session.syndications.incomplete()
        return [syndication.due for syndication in waiting if syndication.due is not None]

    # What home can be told to do.

    def begin_syndication(
        self, device: int, url: str, sealed: bytes, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Have a syndication device join the server whose key service is at ``url``; SyndicationAnswered follows.

        ``sealed`` is what the away server's owner recognises us by, sealed to the device. Persons may have to agree on
        the other side, so the device has ``lifetime`` seconds (default: the policy's ``update_lifetime``). A device
        that binds no tokens gives no answer: it has begun when it brings the first word of the away server.
        """
        session = self.session
        if device in session.syndications.by_device or device in session.syndication_devices:
            raise PolicyError(f"{device:x} serves another syndication")
        lifetime = session.policy.update_lifetime if lifetime is None else lifetime
        sends = session.ask(device, _S.STARTING, SyndicationInit, now, nonce, lifetime, url=url, sealed=sealed)
        session.syndications.begin(Syndication(device, Role.HOME))
        for ending in session.peer(device).in_state(_S.ENDING):
            ending.retry = 0.0  # sent again it would come after the offer, and undo it
        return sends

    def request_list(self, device: int, now: float, nonce: bytes) -> list[Send]:
        """Ask for what is missing of the list of shared devices, or for all of it if nothing has come."""
        numbers = self._required(self.session.peer(device)).missing[:MAX_RESEND]
        data = pack(f"<{len(numbers)}I", *numbers)
        return self.session.ask(
            device, ActionState.ASKED, SyndicatedC2Request, now, nonce, None, data=data, req_id=RESEND
        )

    def syndicated_action(
        self, device: int, target: int, action_id: int, now: float, nonce: bytes, lifetime: float | None = None
    ) -> list[Send]:
        """Ask for an action of a shared device; ActionAnswered or Unanswered follows."""
        self._required(self.session.peer(device))
        fields: dict[str, Any] = {"action_id": action_id, "target_id": target}
        return self.session.ask(device, ActionState.ASKED, SyndicatedAction, now, nonce, lifetime, **fields)

    def syndicated_identify(self, device: int, target: int, now: float, nonce: bytes) -> list[Send]:
        """Ask what a shared device is; SyndicatedIdentified, IdentificationRefused or Unanswered follows."""
        self._required(self.session.peer(device))
        return self.session.ask(device, _S.IDENTIFYING, SyndicatedIdRequest, now, nonce, None, target_id=target)

    def syndicated_request(self, device: int, req_id: int, data: bytes, now: float, nonce: bytes) -> list[Send]:
        """Make a request of the away server (C2 request); ActionAnswered or Unanswered follows.

        What a ``req_id`` from 0 to 254 means is agreed between the owners; 255 asks for the list of devices.
        """
        if req_id == RESEND:
            raise EncodeError("req_id", f"{RESEND} is taken: it asks for the list of devices")
        self._required(self.session.peer(device))
        return self.session.ask(
            device, ActionState.ASKED, SyndicatedC2Request, now, nonce, None, data=data, req_id=req_id
        )

    def end_syndication(self, device: int, now: float, nonce: bytes) -> list[Output]:
        """End a syndication as home: nothing of it is taken any more.

        SyndicationEnded follows when the away server confirms, Unanswered when it does not (it is over all the same).
        It counts as long as what it ends may still begin.
        """
        peer = self.session.peer(device)
        self._required(peer)
        offered = [offer.expiry - now for offer in peer.in_state(_S.STARTING)]
        lifetime = max((self.session.policy.lifetime, *offered))
        sends = self.session.ask(device, _S.ENDING, SyndicatedEndRequest, now, nonce, lifetime)
        return [*sends, *self._drop(peer, now)]

    def calls_handler(self, peer: Peer, message: Message) -> bool:
        """See :meth:`Flow.calls_handler`: of values, and of lists, by their entries too."""
        return not isinstance(message, SyndicatedTerminate)

    # Effects.

    def syndication_begun(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """The syndication device is in at the away server."""
        syndication = self._required(exchange.peer)
        syndication.began = exchange.peer.counting(cause.sequence_id)
        self._expect_list(syndication, now.time)
        return [SyndicationAnswered(exchange.peer.identity, exchange.token, Status.JOIN_SUCCESS)]

    def syndication_failed(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The syndication device did not get in."""
        self.session.syndications.drop(exchange.peer.identity)
        return [SyndicationAnswered(exchange.peer.identity, exchange.token, Status(cause.status))]

    def syndication_unanswered(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The syndication device never said whether it got in."""
        self.session.syndications.drop(exchange.peer.identity)
        return self.unanswered(exchange, cause, now)

    def devices_counted(self, exchange: Exchange, cause: SyndicatedDeviceCount, now: Now) -> list[Output]:
        """A new list begins; what is left of another one does not count."""
        if self._is_over(exchange.peer):
            return self._disclaim(exchange, cause, now)
        syndication = self._of_present(exchange.peer, cause)
        if cause.count > MAX_SHARED:
            raise PolicyError(f"{cause.count} shared devices are too many; {MAX_SHARED} are possible")
        outputs = self.answer(exchange, Status.ACTION_SUCCESS, now)
        outputs += self._heard(exchange, cause, now)
        if cause.sequence_id < syndication.counted:
            return outputs  # overtaken by a newer one
        unbound = tokens.parse(exchange.token) is None
        kept = syndication.devices if unbound and syndication.count is None else {}
        syndication.token, syndication.count = exchange.token, cause.count
        syndication.counted = exchange.peer.counting(cause.sequence_id)
        syndication.list_anew({})
        for number, device in kept.items():
            if not syndication.contradicts(number):
                syndication.add(number, device)
        self._expect_list(syndication, now.time)
        return [*outputs, *self._complete(syndication)]

    def device_listed(self, exchange: Exchange, cause: SyndicatedDeviceList, now: Now) -> list[Output]:
        """One entry of the list. It has the token of its count, except among deployed peers."""
        if self._is_over(exchange.peer):
            return self._disclaim(exchange, cause, now)
        syndication = self._of_present(exchange.peer, cause)
        if exchange.token != syndication.token and tokens.parse(exchange.token) is not None:
            raise PolicyError("the entry belongs to another list of devices than the one that counts")
        if cause.device_sequence > MAX_SHARED or syndication.contradicts(cause.device_sequence):
            raise PolicyError(f"the list has no number {cause.device_sequence}")
        listed = syndication.devices.get(cause.device_sequence)
        if listed not in (None, cause.device_id) and tokens.parse(exchange.token) is not None:
            raise PolicyError(f"the list has another device under the number {cause.device_sequence}")
        outputs = self._heard(exchange, cause, now)
        if listed == cause.device_id:
            return outputs
        syndication.add(cause.device_sequence, cause.device_id)
        if syndication.complete or not self.session.binds_tokens(exchange.peer):
            self.session.syndications.mark(syndication)  # else what is missing can be had again, and is not kept
        return [*outputs, *self._complete(syndication)]

    def syndicated_data_received(self, exchange: Exchange, cause: SyndicatedData, now: Now) -> list[Output]:
        """A value of a shared device; or what it is, which deployed peers send under a token of its own."""
        peer = exchange.peer
        if self._is_over(peer):
            return self._disclaim(exchange, cause, now)
        syndication = self._of_present(peer, cause)
        asked = peer.in_state(_S.IDENTIFYING) if cause.data_id == IDENTIFICATION_RESPONSE else []
        waiting = [other for other in asked if getattr(other.request, "target_id", None) == cause.source_id]
        if not waiting and not syndication.shares(cause.source_id):
            raise PolicyError(f"{cause.source_id:x} is not one of the devices that are shared with us")
        outputs = self._heard(exchange, cause, now)
        if not waiting:
            told = SyndicatedDataReceived(peer.identity, exchange.token, cause.source_id, cause.data_id, cause.data)
            return [*outputs, told]
        return [*outputs, *self.session.step_all(waiting, SyndicatedData, cause, now)]

    def syndicated_identified(self, exchange: Exchange, cause: SyndicatedData, now: Now) -> list[Output]:
        """A shared device said what it is."""
        self._required(exchange.peer)
        asked = getattr(exchange.request, "target_id", None)
        if (cause.data_id, cause.source_id) != (IDENTIFICATION_RESPONSE, asked):
            raise PolicyError(f"{cause.data_id[:80]!r} of {cause.source_id:x} is not what was asked for")
        text = cause.data.decode(errors="replace")
        return [SyndicatedIdentified(exchange.peer.identity, exchange.token, cause.source_id, text)]

    def identification_refused(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The away server does not tell what a shared device is."""
        return [IdentificationRefused(exchange.peer.identity, exchange.token, Status(cause.status))]

    def end_confirmed(self, exchange: Exchange, cause: Response, now: Now) -> list[Output]:
        """The away server took notice of the end."""
        disclaimed = exchange.detail == _DISCLAIMED
        return [] if disclaimed else [SyndicationEnded(exchange.peer.identity, exchange.token)]

    def end_unconfirmed(self, exchange: Exchange, cause: Any, now: Now) -> list[Output]:
        """The away server did not confirm the end; it is over all the same."""
        return [] if exchange.detail == _DISCLAIMED else self.unanswered(exchange, cause, now)

    def terminated_by_away(self, exchange: Exchange, cause: SyndicatedTerminate, now: Now) -> list[Output]:
        """The away server ended the syndication."""
        self._of_present(exchange.peer, cause)
        ended = SyndicationEnded(exchange.peer.identity, exchange.token)
        outputs = self.answer(exchange, Status.RESIGN_SUCCESS, now)
        return [*outputs, ended, *self._drop(exchange.peer, now.time)]

    # A membership that ends takes the syndication with it.

    def on_revoked(self, peer: Peer, now: float) -> list[Output]:
        """The key of a peer counts no longer."""
        if not self._is_home_with(peer):
            return []
        self.session.syndications.drop(peer.identity)
        return [SyndicationEnded(peer.identity, b"")]

    def on_membership_lost(self, peer: Peer, token: bytes, now: float) -> list[Output]:
        """A peer and we are not joined any more."""
        if not self._is_home_with(peer):
            return []
        return [*self._drop(peer, now), SyndicationEnded(peer.identity, token)]

    # Mechanism.

    def _is_home_with(self, peer: Peer) -> bool:
        known = self.session.syndications.by_device.get(peer.identity)
        return known is not None and known.role is Role.HOME

    def _required(self, peer: Peer) -> Syndication:
        return self.session.syndications.required(peer, Role.HOME)

    def _is_over(self, peer: Peer) -> bool:
        """Return whether a partner speaks of a syndication that we do not have, and is to be told so."""
        session = self.session
        known = peer.identity in session.syndications.by_device or peer.identity in session.syndication_devices
        return peer.member and not known and session.binds_tokens(peer) and not peer.in_state(_S.ENDING)

    def _disclaim(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Say that a syndication is over: the partner has missed its end, or we have forgotten it with a restart.

        Once, and anew when the time of that is over and the partner goes on.
        """
        peer = exchange.peer.identity
        args = peer, _S.ENDING, SyndicatedEndRequest, now.time, now.nonce, None
        sends = self.session.ask(*args, resend=False, detail=_DISCLAIMED)
        return [Unexpected(peer, exchange.token, type(cause), "there is no such syndication"), *sends]

    def _of_present(self, peer: Peer, cause: Message) -> Syndication:
        """Return the syndication with a peer; PolicyError for what it has said in an earlier one, or may have."""
        syndication = self._required(peer)
        if cause.sequence_id < syndication.began:
            raise PolicyError(f"{peer.identity:x} said this before the present syndication began")
        if self.session.binds_tokens(peer) and peer.in_state(_S.STARTING):
            raise PolicyError(f"{peer.identity:x} has not said yet that the syndication has begun")
        return syndication

    def _heard(self, exchange: Exchange, cause: Message, now: Now) -> list[Output]:
        """Take word of the away server for the answer to SyndicationInit: deployed devices give none."""
        starting = exchange.peer.in_state(_S.STARTING)
        return self.session.step_all(starting, Status.JOIN_SUCCESS, cause, now)

    def _expect_list(self, syndication: Syndication, now: float) -> None:
        self.session.syndications.expect_list(syndication, now, self.session.policy.first_retry)

    def _complete(self, syndication: Syndication) -> list[Output]:
        if not syndication.complete:
            return []
        syndication.due = None
        devices = tuple(device for _, device in sorted(syndication.devices.items()))
        return [DevicesShared(syndication.device, syndication.token, devices)]

    def _drop(self, peer: Peer, now: float) -> list[Output]:
        """Forget a syndication, and end what we still asked in it."""
        self.session.syndications.drop(peer.identity)
        ours = self.session.known.open_of(peer.identity)
        return self.session.abandon([each for each in ours if type(each.request) in _OURS], now)

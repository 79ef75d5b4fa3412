"""What a server can be told to do with a device: one class for each verb, which is everything about it.

Its fields are the details of an order, and those of the record that a mailbox keeps (as JSON); ``check`` refuses what
makes no sense, ``start`` does it, and the attributes of the class say how it ends. The methods of Server and of Fleet,
and the commands of ``srup order``, follow from that: the docstring is the help of the command, :class:`Shown` that of
an argument or option.
"""

# ruff: noqa: D102 - what check() and start() promise stands at Order

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, NamedTuple, Self, get_type_hints

from ..errors import PolicyError
from ..identity import parse_identity
from ..keys import PublicKey
from ..messages import Action, Data
from ..session import ServerSession
from ..session.flow import Output
from ..session.policy import check_seconds
from ..store.mailbox import MAX_ORDER_SIZE
from ..update import UpdateState, check_order
from ..wire import Status
from .admission import DECISIONS, Admission, Decision
from .arguments import check_identity, check_type
from .dataqueue import Value
from .facts import TAG
from .members import Members
from .requests import ReportedFuture
from .transaction import Transaction, after_commit
from .updateorder import UpdateOrder, Updates

if TYPE_CHECKING:
    from .engine import Engine

__all__ = [
    "LONGEST_NAME",
    "MAX_LIFETIME",
    "VERBS",
    "AboutUpdate",
    "Activate",
    "ByOrder",
    "Cancel",
    "CommandJoin",
    "DecideJoin",
    "Deregister",
    "DoAction",
    "Identify",
    "Order",
    "Parts",
    "Register",
    "Remove",
    "Revoke",
    "SendData",
    "Shown",
    "Tag",
    "Terminate",
    "Turn",
    "Update",
    "check_name",
    "load_order",
]

_HEADER: Final[dict[str, Any]] = {"sequence_id": 1, "sender_id": 0, "token": b"-"}  # of a message that is never sent

_TAG: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LONGEST_TAG: Final = 200
_JOIN: Final = re.compile("[0-9a-f]{32}")
_LONGEST_NAME: Final = 100

LONGEST_NAME: Final = 100
"""How many characters the name of whoever posts an order may have."""

MAX_LIFETIME: Final = 10**10
"""The longest lifetime of an order, in seconds: some 300 years, which is what a Redis can keep a report for."""


def check_name(posted_by: str) -> str:
    """Return the name of whoever posts an order; TypeError or ValueError for what is none."""
    check_type(posted_by, str, "posted_by")
    if len(posted_by) > LONGEST_NAME or not posted_by.isprintable():
        raise ValueError(f"posted_by has up to {LONGEST_NAME} characters, which can be printed")
    return posted_by


class Shown(NamedTuple):
    """How a detail of an order is shown where people type it: its name and help, the range of a number."""

    help: str
    name: str | None = None
    least: int | None = None
    most: int | None = None
    is_identity: bool = False
    is_version: bool = False


class Parts(NamedTuple):
    """The parts of a server that verbs need."""

    engine: "Engine"
    session: ServerSession
    members: Members
    updates: Updates
    admission: Admission


class ByOrder(ReportedFuture):
    """The future of an order of a mailbox: ``order`` is its id, and at ``expiry`` it is too late to begin."""

    order: bytes
    expiry: float

    def value_waits(self, transaction: Transaction, number: int) -> None:
        """It ends with the value that waits under this number."""
        raise NotImplementedError

    def take_back(self, transaction: Transaction, order: str) -> None:
        """Take back another order of the same device, by its id in hex; PolicyError when it has been sent."""
        raise NotImplementedError

    def dropping_key(self) -> AbstractContextManager[None]:
        """Return a context in which the change of a key says durably that the order is done."""
        raise NotImplementedError


class Turn(NamedTuple):
    """The moment in which an order begins; what stands in a mailbox has a ``lifetime`` left, and a future by order."""

    transaction: Transaction
    now: float
    nonce: bytes
    lifetime: float | None = None
    future: Any = None


Lifetime = Annotated[float | None, Shown("After this time the order is not begun, or given up.", "SECONDS")]


@dataclass(frozen=True)
class Order:
    """Something that is to be done with ``device``; ``posted_by`` says who wants it, for the audit."""

    verb: ClassVar[str] = ""
    """What it is called in Python and in a mailbox,"""
    command: ClassVar[str] = ""
    """and as a command."""
    result: ClassVar[type[Status] | type[UpdateState] | None] = None
    """What it comes to: one of these, or nothing or text."""
    answered: ClassVar[bool] = False
    """Whether the answer of the device ends it."""
    usual_lifetime: ClassVar[str] = ""
    """The setting of the policy that bounds how late it may begin; without one it is never too late."""
    urgent: ClassVar[bool] = False
    """Whether it is carried out before all that was ordered earlier."""

    device: int
    posted_by: str = field(default="", kw_only=True)

    def check(self) -> None:
        """Raise what the server's method of this name would raise at once: EncodeError, ValueError, TypeError, ..."""

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        """Begin in a turn; return what is to be sent and told. A SrupError says why it cannot be done."""
        raise NotImplementedError

    def checked(self) -> Self:
        """Return it; raise what is wrong with it."""
        check_identity(self.device, "device")
        check_name(self.posted_by)
        lifetime = getattr(self, "lifetime", None)
        if lifetime is not None:
            check_seconds(lifetime, "lifetime")
            if lifetime > MAX_LIFETIME:
                raise ValueError(f"lifetime must be at most {MAX_LIFETIME} seconds, not {lifetime!r}")
        self.check()
        return self

    def dump(self) -> bytes:
        """Return it as a mailbox keeps it; ValueError when it is too long for one."""
        details = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        if not self.posted_by:
            del details["posted_by"]  # then a server of an earlier version takes it too
        written = {name: _written(value) for name, value in details.items() if value is not None}
        content = json.dumps({"order": self.verb, "device": f"{self.device:x}"} | written).encode()
        if len(content) > MAX_ORDER_SIZE:
            raise ValueError(f"an order has at most {MAX_ORDER_SIZE} bytes, not {len(content)}")
        return content


@dataclass(frozen=True)
class DoAction(Order):
    """Order a device to do an action."""

    verb, command, result, answered, usual_lifetime = "action", "action", Status, True, "lifetime"

    action_id: Annotated[int, Shown("The number of the action.", "ACTION", 0, 255)]
    lifetime: Lifetime = None

    def check(self) -> None:
        Action(**_HEADER, action_id=self.action_id)

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return server.session.action(self.device, self.action_id, turn.now, turn.nonce, turn.lifetime)


@dataclass(frozen=True)
class Identify(Order):
    """Ask a device for its description."""

    verb, command, answered, usual_lifetime = "identify", "identify", True, "lifetime"

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return server.session.identify(self.device, turn.now, turn.nonce)


@dataclass(frozen=True)
class Update(Order):
    """Update the firmware of a device."""

    verb, command, result, answered, usual_lifetime = "update", "update", UpdateState, True, "update_lifetime"

    url: Annotated[str, Shown("URL from which the device downloads the firmware.")]
    digest: str
    hold: Annotated[bool, Shown("Do not activate the firmware before srup order activate.")] = False
    version: Annotated[int | None, Shown("Version of the firmware, such as 42 or 4.2.0.", is_version=True)] = None
    lifetime: Lifetime = None

    def check(self) -> None:
        check_order(self.url, self.digest, self.version)
        check_type(self.hold, bool, "hold")

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        updates = server.updates
        order = updates.new_order(self.device, self.url, self.digest)
        updates.report_to(order, turn.future)
        left = turn.lifetime
        return updates.start_order(turn.transaction, order, turn.now, turn.nonce, left, self.hold, self.version)


@dataclass(frozen=True)
class AboutUpdate(Order):
    """Something about another order, which ``update`` names: by its id, or by the token if it is an update."""

    update: Annotated[str, Shown("ID of the order, or its token if it is an update.", "ID")]

    def check(self) -> None:
        check_type(self.update, str, "update")

    def look_up(self, server: Parts) -> UpdateOrder | None:
        """Return the update, if it is under way."""

        def named(done: "Future[Any]") -> bool:
            return isinstance(done, ByOrder) and done.order.hex() == self.update

        found = server.updates.find_reported(self.device, named)
        return found or server.updates.find(self.device, self.update.encode())


@dataclass(frozen=True)
class Activate(AboutUpdate):
    """Activate an update that was ordered to be held."""

    verb, command = "activate", "activate"

    lifetime: Annotated[
        float | None, Shown("After this time the device is not told, and does not obey.", "SECONDS")
    ] = None

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        update = self.look_up(server)
        if update is None:
            raise PolicyError(f"there is no update of {self.device:x} under way with this id or token")
        until = None
        if self.lifetime is not None and turn.lifetime is not None:
            until = server.session.unix(turn.now) + turn.lifetime
        token = server.updates.check_activable(update, told=until is not None)
        return server.session.activate(self.device, token, turn.now, until)


@dataclass(frozen=True)
class Cancel(AboutUpdate):
    """Take back an order that has had no effect yet; an update, until the device is told to activate it."""

    verb, command, urgent = "cancel", "cancel", True

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        if (update := self.look_up(server)) is not None:
            return server.session.cancel_order(self.device, server.updates.check_revocable(update), turn.now)
        turn.future.take_back(turn.transaction, self.update)
        return ()


@dataclass(frozen=True)
class SendData(Order):
    """Send a device a value."""

    verb, command, usual_lifetime = "send_data", "send", "update_lifetime"

    data_id: Annotated[str, Shown("Name of the value (data_id).", "NAME")]
    data: bytes
    lifetime: Lifetime = None

    def check(self) -> None:
        Data(**_HEADER, data_id=self.data_id, data=self.data)

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        value = Value(self.data_id, self.data)
        until = turn.future.expiry - server.session.lead  # in local time
        number = server.engine.values.add(turn.transaction, self.device, value, until, turn.future)
        turn.future.value_waits(turn.transaction, number)
        return ()


@dataclass(frozen=True)
class CommandJoin(Order):
    """Command a device to join this server, or another one."""

    verb, command, result, answered, usual_lifetime = "command_join", "join", Status, True, "lifetime"

    server: Annotated[int | None, Shown("Another server to join; default: this one.", is_identity=True)] = None

    def check(self) -> None:
        if self.server is not None:
            check_identity(self.server, "server")

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return server.members.command_join(self.device, self.server, turn.now, turn.nonce)


@dataclass(frozen=True)
class DecideJoin(Order):
    """Decide about a join that waits for a person; srup join shows which do."""

    verb, command = "decide_join", "decide"

    join: Annotated[str, Shown("ID of the join, which stands for the value that was compared.", "JOIN")]
    decision: Annotated[Decision, Shown("What was seen: accept, refuse or fail.", "DECISION")]
    by: Annotated[str, Shown("Who decides, for the log.", "NAME")] = ""

    def check(self) -> None:
        check_type(self.join, str, "join")
        check_type(self.decision, str, "decision")
        check_type(self.by, str, "by")
        if not _JOIN.fullmatch(self.join):
            raise ValueError(f"{self.join!r:.80} is no id of a join, which has 32 hex digits")
        if self.decision not in DECISIONS:
            raise ValueError(f"a decision is {', '.join(DECISIONS)}, not {self.decision!r:.80}")
        if len(self.by) > _LONGEST_NAME or not self.by.isprintable():
            raise ValueError(f"the name of who decides has up to {_LONGEST_NAME} characters, which can be printed")

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return server.admission.decide(turn.transaction, self.device, self.join, self.decision, self.by)


@dataclass(frozen=True)
class Register(Order):
    """Register the key of a device: it may join."""

    verb, command = "register", "register"

    key: PublicKey

    def check(self) -> None:
        check_type(self.key, PublicKey, "key")

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        server.engine.keys.add(self.device, self.key)
        after_commit(turn.transaction, lambda: server.members.expect(self.device))
        return ()


@dataclass(frozen=True)
class Remove(Order):
    """Delete the key of a device without telling it."""

    verb, command = "remove", "remove"

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return self._shut_out(server, turn, server.engine.keys.remove)

    def _shut_out(self, server: Parts, turn: Turn, drop: Callable[[int], object]) -> Sequence[Output]:
        known = self.device in server.engine.keys
        if known:
            with turn.future.dropping_key():
                drop(self.device)
        return server.members.shut_out(turn.transaction, self.device, known, self.verb, turn.now)


@dataclass(frozen=True)
class Revoke(Remove):
    """Revoke a device: end its membership and bar its key, for good."""

    verb, command, urgent = "revoke", "revoke", True

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return self._shut_out(server, turn, server.engine.keys.revoke)


@dataclass(frozen=True)
class Tag(Order):
    """Give a device a tag, by which it is found; the device is not told."""

    verb, command = "tag", "tag"

    name: Annotated[str, Shown("The name of the tag: letters, digits, '.', '_' or '-'.", "NAME")]
    value: Annotated[str, Shown("The value; an empty one takes the tag away.", "VALUE")]

    def check(self) -> None:
        check_type(self.name, str, "name")
        check_type(self.value, str, "value")
        if not _TAG.fullmatch(self.name):
            raise ValueError(f"{self.name!r:.120} is no name of a tag: 1 to 100 letters, digits, '.', '_' or '-'")
        if len(self.value) > _LONGEST_TAG or not self.value.isprintable():
            raise ValueError(f"the value of a tag has up to {_LONGEST_TAG} characters, which can be printed")

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        if self.value:
            if self.device not in server.engine.keys:
                raise PolicyError(f"no key is registered for {self.device:x}")
            server.engine.facts.set(turn.transaction, self.device, TAG + self.name, self.value)
        else:
            server.engine.facts.drop(turn.transaction, self.device, TAG + self.name)
        return ()


@dataclass(frozen=True)
class Terminate(Order):
    """End the membership of a device; it may join again."""

    verb, command = "terminate", "terminate"

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        return server.session.terminate(self.device, turn.now, turn.nonce)


@dataclass(frozen=True)
class Deregister(Order):
    """Deregister a device: tell it, and delete its key."""

    verb, command = "deregister", "deregister"

    def start(self, server: Parts, turn: Turn) -> Sequence[Output]:
        server.engine.keys.remove(self.device)  # first: then nothing else has happened if it cannot be done yet
        return server.session.deregister(self.device, turn.now, turn.nonce)


VERBS: Final[Mapping[str, type[Order]]] = {
    each.verb: each
    for each in (
        *(DoAction, Identify, Update, Activate, Cancel, SendData, CommandJoin, DecideJoin),
        *(Register, Remove, Revoke, Terminate, Deregister, Tag),
    )
}
"""All verbs by name, in the order in which help shows them."""


# Orders as JSON: numbers, texts and truth values as they are, the rest as text.

_READ: Final[dict[Any, Callable[[str], Any]]] = {
    bytes: lambda text: b64decode(text, validate=True),
    PublicKey: lambda text: PublicKey.from_pem(text.encode()),
}


def _written(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.to_pem().decode() if isinstance(value, PublicKey) else value


@cache
def _readers(verb: str) -> dict[str, Callable[[str], Any]]:
    return {name: _READ[hint] for name, hint in get_type_hints(VERBS[verb]).items() if hint in _READ}


def load_order(content: bytes) -> Order:
    """Return what :meth:`Order.dump` has written, checked; ValueError, TypeError or SrupError for anything else."""
    if len(content) > MAX_ORDER_SIZE:
        raise ValueError(f"an order has at most {MAX_ORDER_SIZE} bytes, not {len(content)}")
    details = json.loads(content)
    check_type(details, dict, "an order")
    verb, device = details.pop("order", ""), details.pop("device", "")
    check_type(verb, str, "what is ordered")
    check_type(device, str, "device")
    kind = VERBS.get(verb)
    if kind is None:
        raise ValueError(f"{verb!r:.80} cannot be ordered; what can is {', '.join(VERBS)}")
    for name, read in _readers(verb).items():
        if name in details:
            check_type(details[name], str, name)
            details[name] = read(details[name])
    try:
        order = kind(parse_identity(device), **details)
    except TypeError as error:
        raise TypeError(f"{verb}: {error}") from None
    return order.checked()

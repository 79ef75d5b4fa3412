"""Forms for orders, made of the table of verbs: a field for each detail, and the order of what was typed.

The table is :data:`srup.agent.verbs.VERBS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from ..agent.verbs import VERBS, AboutUpdate, DecideJoin, Order, Shown
from ..errors import SrupError
from ..fleet.posted import parse_id
from ..identity import parse_identity
from ..keys import PublicKey
from ..messages import Data, DataKind
from .visit import Values

__all__ = ["DANGEROUS", "Field", "VerbForm", "verb_forms"]

DANGEROUS: Final = frozenset({"revoke", "remove", "deregister"})
"""The verbs for which the identity is typed: what they do to a key is not undone by another one."""


class Field(NamedTuple):
    """A field of a form: what HTML needs to know of it."""

    name: str
    label: str
    help: str = ""
    type: str = "text"
    required: bool = True
    least: int | None = None
    most: int | None = None
    pattern: str = ""
    options: tuple[str, ...] = ()


_NOT_TYPED: Final = ("device", "posted_by")
_KINDS: Final = get_args(DataKind)
_TEXT_FIRST: Final = ("text", *(each for each in _KINDS if each != "text"))
_HEX: Final = "[0-9a-fA-F]{64}"
_MADE: Final[Mapping[str, tuple[Field, ...]]] = {
    "digest": (Field("digest", "Digest", "SHA-256 of the firmware: 64 hexadecimal digits.", "digest", pattern=_HEX),),
    "data": (
        Field("value", "Value", "Text, or a number; bytes are given in hex.", required=False),
        Field("kind", "Type of the value", type="select", options=_TEXT_FIRST),
    ),
    "key": (Field("key", "Public key", "The public key of the device, PEM.", "textarea"),),
}
"""The details that are not typed as they are posted."""


class VerbForm(NamedTuple):
    """The form of a verb."""

    verb: type[Order]
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        """By which its page is found."""
        return self.verb.command

    @property
    def title(self) -> str:
        """What it is called."""
        return self.verb.command.capitalize()

    @property
    def help(self) -> str:
        """What it does."""
        return (self.verb.__doc__ or "").split("\n")[0]

    @property
    def dangerous(self) -> bool:
        """Whether the identity must be typed."""
        return self.verb.verb in DANGEROUS

    @property
    def about(self) -> bool:
        """Whether it is about another order, which names the device."""
        return issubclass(self.verb, AboutUpdate)

    def details(self, typed: Values) -> dict[str, Any]:
        """Return the details of the order that was typed; ValueError or SrupError for what makes no sense."""
        hints = get_type_hints(self.verb, include_extras=True)
        return {
            each.name: _read(each.name, hints[each.name], each.default is MISSING, typed)
            for each in fields(self.verb)
            if each.name not in _NOT_TYPED
        }

    def check(self, device: int, typed: Values, by: str = "") -> Order:
        """Return the order of ``by`` for a device, checked; ValueError or SrupError for what makes no sense."""
        details = self.details(typed)
        if self.about and (named := parse_id(details["update"])) is not None:
            if named[0] != device:
                raise ValueError(f"{details['update']} is an order for another device")
            details["update"] = named[1].hex()
        try:
            return self.verb(device, **details, posted_by=by).checked()
        except TypeError as error:
            raise ValueError(str(error)) from None


@cache
def verb_forms() -> dict[str, VerbForm]:
    """Return the form of each verb, by the name of its command; joins are decided on a page of their own."""
    return {verb.command: VerbForm(verb, tuple(_fields(verb))) for verb in VERBS.values() if verb is not DecideJoin}


def _fields(verb: type[Order]) -> list[Field]:
    hints = get_type_hints(verb, include_extras=True)
    found: list[Field] = []
    for each in fields(verb):
        if each.name in _MADE:
            found += _MADE[each.name]
        elif each.name not in _NOT_TYPED:
            found.append(_field(each.name, hints[each.name], each.default is MISSING))
    return found


def _field(name: str, hint: Any, required: bool) -> Field:
    kind, shown = _parts(hint)
    label = {"action_id": "Action", "data_id": "Name", "url": "URL", "update": "Order"}.get(name, name.capitalize())
    if name == "lifetime":
        label = "Lifetime in seconds"
    types = {int: "number", float: "number", bool: "checkbox"}
    type_ = "identity" if shown.is_identity else types.get(kind, "text")
    help_ = shown.help.replace("srup order activate", "it is ordered to")
    return Field(name, label, help_, type_, required and kind is not bool, shown.least, shown.most)


def _parts(hint: Any) -> tuple[Any, Shown]:
    """Return the type of a detail, without None, and how it is shown."""
    shown = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Shown)), Shown(""))
    kind = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(kind) is UnionType or isinstance(kind, UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return kind, shown


def _read(name: str, hint: Any, required: bool, typed: Values) -> Any:
    if name == "data":
        return _data(typed)
    if name == "key":
        return _key(typed)
    kind, shown = _parts(hint)
    text = typed.get(name)
    if kind is bool:
        return bool(text)
    if not text and not required:
        return None
    readers: dict[Any, Callable[[str], Any]] = {int: parse_identity if shown.is_identity else int, float: float}
    try:
        return readers.get(kind, str)(text.lower() if name == "digest" else text)
    except ValueError as error:
        told = str(error) if shown.is_identity else f"{text!r:.80} is no number"
        raise ValueError(f"{name}: {told}") from None


def _data(typed: Values) -> bytes:
    kind, text = typed.get("kind", "text"), typed.raw("value")
    if kind not in _KINDS:
        raise ValueError(f"{kind!r:.40} is no type of a value")
    readers: dict[str, Callable[[str], Any]] = {"bytes": bytes.fromhex, "text": str, "float": float, "double": float}
    try:
        value = readers.get(kind, int)(text)
    except ValueError:
        raise ValueError(f"{text!r:.80} is no value of the type {kind}") from None
    return Data.encode_value(value, kind)  # type: ignore[arg-type]


def _key(typed: Values) -> PublicKey:
    try:
        return PublicKey.from_pem(typed.raw("key").encode())
    except SrupError as error:
        raise ValueError(f"key: {error}") from None

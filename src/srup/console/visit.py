"""What a page or an action is given, and what it returns: the words in which the console's parts speak."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .once import Done
from .sessions import Session
from .users import Power, User

if TYPE_CHECKING:
    from .site import Site

__all__ = ["NOTHING", "Action", "Missing", "Page", "Question", "Shown", "Values", "Visit"]


class Values:
    """What a query or a form says: texts by name, of which there may be several."""

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self.pairs: Final = tuple(pairs)

    def get(self, name: str, default: str = "") -> str:
        """Return the first text of this name, without blanks around it."""
        return next((text.strip() for each, text in self.pairs if each == name), default)

    def all(self, name: str) -> list[str]:
        """Return all texts of this name."""
        return [text.strip() for each, text in self.pairs if each == name]

    def raw(self, name: str) -> str:
        """Return the first text of this name as it was typed."""
        return next((text for each, text in self.pairs if each == name), "")

    def __contains__(self, name: object) -> bool:
        return any(each == name for each, _ in self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)


NOTHING: Final = Values()


@dataclass(frozen=True)
class Visit:
    """A request of a user who is logged in, and allowed to make it.

    ``token`` names the page that was loaded, and is the same in all its forms; what was ``typed`` into a form that was
    refused is shown again, with what is ``wrong`` with it.
    """

    site: "Site"
    session: Session
    now: float
    path: Mapping[str, str]
    query: Values = NOTHING
    form: Values = NOTHING
    token: str = ""
    typed: Values = NOTHING
    wrong: str = ""
    address: str = field(default="/")

    @property
    def user(self) -> User:
        """Who it is."""
        return self.session.user

    def may(self, power: str) -> bool:
        """Whether the user may do this; by the name of a :class:`Power`, as templates have it."""
        return self.user.may(Power[power.upper()])


class Shown(NamedTuple):
    """A page: the name of its template, what stands in it, and whether it changes while it is looked at."""

    template: str
    content: Mapping[str, Any]
    live: bool = True
    status: int = 200


class Missing(LookupError):
    """There is no such thing; the text says what."""


class Page(NamedTuple):
    """What is shown under a path, to whom may do ``power``."""

    path: str
    show: Callable[[Visit], Shown]
    power: Power = Power.LOOK


class Action(NamedTuple):
    """What a form that is sent to ``path`` does, for whom may do ``power``.

    What is wrong with the form is a ValueError or a SrupError, which ``page`` shows with what was typed.
    """

    path: str
    do: Callable[[Visit], Done]
    power: Power
    page: Callable[[Visit], Shown]


class Question(NamedTuple):
    """What a form that is sent to ``path`` asks back before anything is done; as with an :class:`Action`."""

    path: str
    ask: Callable[[Visit], Shown]
    power: Power
    page: Callable[[Visit], Shown]

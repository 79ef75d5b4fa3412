"""A TOML file that is read strictly: each value is taken once, and whatever is wrong is told with its place."""

import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ..errors import EncodeError

__all__ = ["CampaignFileError", "SourceFile", "Table"]


class CampaignFileError(ValueError):
    """A campaign file that says what makes no sense; the text names file, line and column."""


class Table:
    """A table of the file, of which each value is taken once; what is left over has no meaning."""

    def __init__(self, file: "SourceFile", content: object, path: tuple[str | int, ...]) -> None:
        self.file, self.path = file, path
        if not isinstance(content, dict):
            file.fail(path, f"must be a table, not {content!r:.60}")
        self._left = dict(content)

    def take(self, name: str, read: Callable[[Any], Any], default: Any = ...) -> Any:
        """Return a value as ``read`` does; ``default`` when it is missing, without which it must be there."""
        if name not in self._left:
            if default is ...:
                self.file.fail(self.path, f"{self.title}{name!r} is missing", inside=True)
            return default
        try:
            return read(self._left.pop(name))
        except CampaignFileError:
            raise
        except (ValueError, TypeError, OSError, EncodeError) as error:
            said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            self.file.fail((*self.path, name), f"{name}: {said}")

    def table(self, name: str) -> "Table":
        """Return a table inside; an empty one if there is none."""
        return Table(self.file, self._left.pop(name, {}), (*self.path, name))

    def end(self, *known: str) -> None:
        """Complain about what nobody has taken."""
        for name in self._left:
            self.file.fail((*self.path, name), f"{self.title}unknown key {name!r}; known are {', '.join(known)}")

    @property
    def names(self) -> set[str]:
        """Those that are left."""
        return set(self._left)

    @property
    def title(self) -> str:
        """Names the table, in front of what is said of it."""
        names = [each for each in self.path if isinstance(each, str)]
        return f"[{'.'.join(names)}] " if names else ""


class SourceFile:
    """The text of a file, in which the place of a value is found again: tomllib does not say where it was."""

    _HEADER: Final = re.compile(r"\s*(\[{1,2})([^\[\]]+)\]{1,2}\s*(?:#.*)?$")

    def __init__(self, name: str, text: str) -> None:
        self.name, self._text = name, text

    def fail(self, path: tuple[str | int, ...], said: str, *, inside: bool = False) -> NoReturn:
        """Raise CampaignFileError about the value, or the table, with this path."""
        line, column = self._place(path)
        raise CampaignFileError(f"{self.name}, line {line}, column {column}: {said}")

    def _place(self, path: tuple[str | int, ...]) -> tuple[int, int]:
        """Return line and column, from 1, of the key that is the longest known beginning of a path."""
        lines = self._text.splitlines()
        first, last, found = 0, len(lines), (1, 1)
        rest = list(path)
        while rest and isinstance(rest[0], str):  # which header
            name, *following = rest
            number = following[0] if following and isinstance(following[0], int) else 0
            headers = [
                (index, match)
                for index, line in enumerate(lines)
                if (match := self._HEADER.match(line)) and match[2].strip(" \"'") == name
            ]
            if number >= len(headers):
                break
            index, match = headers[number]
            found = (index + 1, match.start(1) + 1)
            following = following[1:] if following and isinstance(following[0], int) else following
            first = index + 1
            last = next((each for each in range(first, len(lines)) if self._HEADER.match(lines[each])), len(lines))
            rest = following
            break
        else:
            first = 0
        if found == (1, 1):
            last = next((index for index, line in enumerate(lines) if self._HEADER.match(line)), len(lines))
        offset = 0
        for name in rest:  # then which key, and which one in the table that follows it on its line
            if not isinstance(name, str):
                continue
            pattern = re.compile(rf"(?:^|[\s{{,.])([\"']?{re.escape(name)}[\"']?)\s*(?:=|\.)")
            for index in range(first, last):
                match = pattern.search(lines[index], offset if index == first else 0)
                if match:
                    found = (index + 1, match.start(1) + 1)
                    first, offset = index, match.end()
                    break
        return found

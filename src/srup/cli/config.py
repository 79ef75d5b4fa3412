"""Settings of the commands that are not typed each time: a file srup.toml, and variables of the environment.

An option that is typed counts first, then the environment, then the file, then its default. In the file a table has the
options of a command, by their names; what stands above the tables counts for every command that has such an option::

    broker = "mqtts://broker.example:8883"
    ca = "ca.pem"

    [server]
    identity = "5e"
    store = "server.db"

    [order.action]
    wait = true

Paths are relative to the folder of the file. The same as variables: ``SRUP_BROKER``, ``SRUP_SERVER_STORE``.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["FILE", "PATHS", "SHARED", "Setting", "Settings"]

FILE: Final = "srup.toml"
"""The file that is read from the current folder unless another one is named."""

SHARED: Final = (
    *("audit_days", "broker", "broker_user", "ca", "cert", "cert_key", "devices", "enrolled", "identity", "key"),
    *("log_format", "store"),
)
"""The options that may stand above the tables, each of which several commands have."""

PATHS: Final = frozenset(
    {
        *("ca", "cert", "cert_key", "devices", "enrolled", "fetch_ca", "file", "firmware", "folder", "images", "key"),
        *("output", "plugin", "server_key", "store", "tls_cert", "tls_key", "users", "witness"),
    }
)
"""The options that name a file or a folder."""

_LINE: Final = re.compile(r"\s*(?:\[(?P<table>[^\]]+)\]|[\"']?(?P<key>[\w-]+)[\"']?\s*=)")


class Setting(NamedTuple):
    """What an option is set to, and where: a line of a file, or a variable."""

    value: Any
    place: str


class Settings:
    """The settings for one command: those of its table over those for all.

    ``path`` names the command, such as ("order", "action"); () is the program itself.
    """

    def __init__(self, file: Path | None, content: Mapping[str, Any], text: str, path: tuple[str, ...] = ()) -> None:
        self.file = file
        self.path = path
        self._content = content
        self._text = text

    @classmethod
    def load(cls, path: Path | None = None) -> "Settings":
        """Read a file, srup.toml in the current folder by default, which may be missing.

        ValueError says what is wrong with a file, and where.
        """
        file = Path(FILE) if path is None else path
        try:
            text = file.read_text("utf-8")
            content = tomllib.loads(text)
        except FileNotFoundError:
            if path is not None:
                raise ValueError(f"{file} does not exist") from None
            return cls(None, {}, "")
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text, see byte {error.start}") from None
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{file}: {error}") from None
        return cls(file, content, text)

    def of(self, command: str) -> "Settings":
        """Return those for a command of the one that these are for."""
        return Settings(self.file, self._content, self._text, (*self.path, command))

    def check(self, options: set[str], commands: set[str]) -> None:
        """Raise ValueError, which names file and line, for a name in our table that is no option and no command."""
        known = options | commands
        for name, value in self._table().items():
            if name.replace("-", "_") in known:
                continue
            if not self.path and not isinstance(value, dict) and name.replace("-", "_") in SHARED:
                continue
            where = f"[{'.'.join(self.path)}] has no option" if self.path else "no command or common option is named"
            raise ValueError(f"{self.file}, line {self._line(name, self.path)}: {where} {name!r}")

    def find(self, option: str) -> Setting | None:
        """Return the setting of an option (with underscores); None if there is none."""
        names = [f"SRUP_{'_'.join([*self.path, option])}"] + ([f"SRUP_{option}"] if option in SHARED else [])
        for name in names:
            variable = name.upper().replace("-", "_")
            if value := os.environ.get(variable):
                return Setting(value, variable)
        for path in [self.path, *([()] if option in SHARED else [])]:
            for name, value in (self._table() if path else self._content).items():
                if name.replace("-", "_") == option and not isinstance(value, dict):
                    placed = self._placed(value) if option in PATHS else value
                    return Setting(placed, f"{self.file}, line {self._line(name, path)}")
        return None

    def _table(self) -> Mapping[str, Any]:
        table: Any = self._content
        for depth, name in enumerate(self.path):
            table = table.get(name, {})
            if not isinstance(table, dict):
                line = self._line(name, self.path[:depth])
                raise ValueError(f"{self.file}, line {line}: {name!r} must be a table")
        return table  # type: ignore[no-any-return]

    def _placed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._placed(each) for each in value]
        if self.file is None or not isinstance(value, str) or "://" in value:
            return value
        return str(self.file.parent / value)

    def _line(self, wanted: str, path: tuple[str, ...]) -> int:
        """Return the line of a name, or of the table with that name, in a table; 1 if it is written otherwise."""
        table: list[str] = []
        for number, line in enumerate(self._text.splitlines(), 1):
            if (match := _LINE.match(line)) is None:
                continue
            if match["table"] is not None:
                table = [part.strip(" \"'") for part in match["table"].split(".")]
                if table[: len(path) + 1] == [*path, wanted]:
                    return number
            elif match["key"] == wanted and table == list(path):
                return number
        return 1

"""Imports that wait until they are needed: our own modules, and the packages of the extras (pyproject.toml).

Only ``cryptography`` is always installed. Every other package is imported where it is used, and when it is missing, the
error names the extra that installs it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple

__all__ = ["OPTIONAL", "Package", "at_first_use", "missing_named", "require", "what_is_missing"]


class Package(NamedTuple):
    """A package that srup can do without: what pip calls it, and the smallest extra that installs it."""

    distribution: str
    extra: str


OPTIONAL: Final = {
    "amqtt": Package("amqtt", "demo"),
    "dpkt": Package("dpkt", "cli"),
    "itsdangerous": Package("itsdangerous", "console"),
    "jinja2": Package("jinja2", "console"),
    "mnemonic": Package("mnemonic", "join"),
    "paho": Package("paho-mqtt", "mqtt"),
    "prometheus_client": Package("prometheus-client", "metrics"),
    "redis": Package("redis", "redis"),
    "rich": Package("rich", "cli"),
    "segno": Package("segno", "join"),
    "starlette": Package("starlette", "keyex"),
    "structlog": Package("structlog", "cli"),
    "typer": Package("typer", "cli"),
    "urllib3": Package("urllib3", "mqtt"),
    "uvicorn": Package("uvicorn", "keyex"),
}
"""Every optional package that srup imports, by the name of its module."""


def what_is_missing(error: ImportError) -> str | None:
    """Return which package ``error`` is about and how to install it; None unless an optional package is missing."""
    package = OPTIONAL.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    return package and f"{package.distribution} is not installed: pip install 'srup[{package.extra}]'"


@contextmanager
def missing_named() -> Iterator[None]:
    """Let the ModuleNotFoundError of an optional package name the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (message := what_is_missing(error)) is None:
            raise
        raise ModuleNotFoundError(message, name=error.name) from None


def require(*modules: str) -> None:
    """Import optional packages that will be needed later: a ModuleNotFoundError now is better than one by then."""
    with missing_named():
        for module in modules:
            import_module(module)


def at_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for ``package``: names that are imported at their first use.

    ``homes`` has the module in the package that defines a name; "" for a name that is itself such a module.
    """

    def __getattr__(name: str) -> Any:
        if (home := homes.get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with missing_named():
            module = import_module(f"{package}.{home or name}")
        return getattr(module, name) if home else module

    return __getattr__

"""How the commands are put together: one app for each module, imported when one of its commands is run or shown."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from importlib import import_module
from shutil import get_terminal_size
from typing import Any, Final

import typer
from typer.core import TyperGroup

from . import logs

__all__ = ["SETTINGS", "App", "lazy_group"]

SETTINGS: Final = "srup.cli.settings"
"""Under which name the ``meta`` of a context has the :class:`~srup.cli.config.Settings`."""

# Typer's own tracebacks show local variables: passwords, keys and tokens would be among them. Its tables of options cut
# names off in a narrow window, and take what stands in brackets for markup.
App: Final = partial(
    typer.Typer, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
"""Make an app for commands, or for one command."""


_WIDEST: Final = 100  # columns of help


def _own_context(context: Any) -> Any:
    """Return this class of contexts with two more abilities.

    Help leaves room for its second column in a narrow window, and options have defaults from :class:`Settings`, which
    the context of the program holds in its ``meta``.
    """

    class Formatter(context.formatter_class):  # type: ignore[misc]
        def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
            super().write_dl(rows, min(col_max, self.width // 2), col_spacing)

    class Context(context):  # type: ignore[misc]
        formatter_class = Formatter

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.settings = None if self.parent is None else _settings_of(self)
            if self.settings is not None:
                known = {_key(each) for each in self.command.params if _is_set(each)}
                commands = self.command.list_commands(self) if hasattr(self.command, "list_commands") else ()
                with _usage_errors(self):
                    self.settings.check(known, set(commands))

        def lookup_default(self, name: str, call: bool = True) -> Any:
            option = next((each for each in self.command.params if each.name == name and _is_set(each)), None)
            if self.settings is None or option is None:
                return super().lookup_default(name, call)
            setting = self.settings.find(_key(option))
            if setting is None:
                return None
            value = setting.value.split() if option.multiple and isinstance(setting.value, str) else setting.value
            try:
                option.process_value(self, value)
            except typer.BadParameter as error:
                raise typer.BadParameter(f"{error.message} ({setting.place})", self, option) from None
            return value

    return Context


def _settings_of(context: Any) -> Any:
    """Return the settings for the command of a context; None if none have been loaded."""
    if context.parent is None:
        return context.meta.get(SETTINGS)
    above = _settings_of(context.parent)
    return None if above is None else above.of(context.command.name)


@contextmanager
def _usage_errors(context: Any) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        context.fail(str(error))


def _is_set(parameter: Any) -> bool:
    """Return whether a parameter is an option that a setting may stand for."""
    return parameter.param_type_name == "option" and not parameter.is_eager and parameter.expose_value


def _key(option: Any) -> str:
    """Return the name of an option in a file: the long one, with underscores."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")  # type: ignore[no-any-return]


def _show_log(_context: Any, _option: Any, wanted: bool) -> None:
    if wanted:
        logs.show(logging.INFO)


def _take(option: Any, command: Any) -> None:
    """Let help fit, and ``--verbose`` stand behind a command, or the last of several, as well as before it."""
    command.context_class = _own_context(command.context_class)
    for each in getattr(command, "commands", {}).values():
        _take(option, each)
    if not hasattr(command, "commands"):
        own = copy(option)
        own.expose_value, own.callback = False, _show_log
        command.params.append(own)


def lazy_group(package: str, names: Sequence[str]) -> type[TyperGroup]:
    """Return a group with a command for each of ``names``, in this order: the ``app`` of the module of that name.

    No command waits for what another one imports, or fails because of it.
    """

    class LazyGroup(TyperGroup):
        context_class = _own_context(TyperGroup.context_class)

        def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
            wide = min(get_terminal_size().columns, _WIDEST)  # Click's own choice is never below 50
            return super().make_context(info_name, args, parent, **{"terminal_width": wide} | extra)

        def list_commands(self, ctx: Any) -> list[str]:
            return [*names, *(name for name in super().list_commands(ctx) if name not in names)]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name in names and cmd_name not in self.commands:
                command = typer.main.get_command(import_module(f"{package}.{cmd_name}").app)
                command.name = cmd_name
                _take(next(option for option in self.params if option.name == "verbose"), command)
                self.add_command(command, cmd_name)
            return super().get_command(ctx, cmd_name)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            known = self.list_commands(ctx)
            if args[0] not in known:  # only commands that have been imported are suggested
                for name in known:
                    self.get_command(ctx, name)
            return super().resolve_command(ctx, args)

    return LazyGroup

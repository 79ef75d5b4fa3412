"""The terminal of an operator: lines that stay, a screen that does not, and what is typed.

Lines are escaped here, so that nothing from the network steers the terminal (T17). What is secret appears on
the alternate screen only, which has no scrollback and is wiped when it is left.
"""

import codecs
import logging
import os
import selectors
import signal
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final, NamedTuple, NoReturn, Self

import typer
from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.screen import Screen
from rich.text import Text

from ..errors import SrupError
from ..files import complaint
from ..printable import printable
from . import logs
from .endings import has_terminal, told_to_end

__all__ = ["Scene", "Terminal", "console", "errors", "explained", "fail", "secret", "show", "tell"]

console: Final = Console()
errors: Final = Console(stderr=True)

LONGEST_LINE: Final = 500
"""How much is shown of a line, in characters; what comes from the network may be long."""

MAX_LINES: Final = 500
"""How many lines wait at most while the alternate screen is up; the oldest give way (T9)."""

MAX_TYPED: Final = 400
_TICK: Final = 1.0  # seconds; a remaining time is shown, and the window may have another size
_ESCAPE, _DELETE, _ENTER = "\x1b", "\b\x7f", "\r\n"


def fail(message: str) -> NoReturn:
    """End the command because of a mistake of the operator."""
    show(message, to=errors, before=("error: ", "red"))
    raise typer.Exit(2)


@contextmanager
def explained() -> Iterator[None]:
    """Let a mistake of the operator, or trouble outside this program, end the command with one line."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what we print
        raise
    except OSError as error:
        fail(complaint(error))
    except (SrupError, ValueError) as error:
        fail(str(error))


def secret(question: str, confirm: bool = False) -> str:
    """Ask for a password, which is not shown; with ``confirm`` twice."""
    try:
        answer: str = typer.prompt(question, hide_input=True, confirmation_prompt=confirm)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        fail(f"{question}: no answer")
    return answer


def tell(text: str, style: str = "") -> None:
    """Show a line on standard error."""
    show(text, style, to=errors)


def show(
    text: str,
    style: str = "",
    *,
    to: Console = console,
    most: int | None = LONGEST_LINE,
    before: tuple[str, str] = ("", ""),
) -> None:
    """Print one line, escaped and not longer than ``most``; ``before`` is a text of ours with a style of its own."""
    to.print(_hanging(Text.assemble(before, (printable(text, most, words=True), style)), to), soft_wrap=True)


def _hanging(line: Text, on: Console) -> Text:
    """Indent what a terminal does not get into its first row: no part of a line must look like another one."""
    if not on.is_terminal or line.cell_len <= on.width:
        return line
    rows = line.wrap(on, max(1, on.width - 2))
    for row in rows:
        row.rstrip()
    return Text("\n  ").join(rows)


class Scene(NamedTuple):
    """What the alternate screen shows.

    ``subject`` is what it is about: when that is another one, what has been typed is dropped, so that no answer reaches
    what its author has not seen. ``body`` is given the columns and rows that there are. ``answer`` takes a typed line
    and returns what is wrong with it, if anything; without it nothing can be typed.
    """

    subject: object
    body: Callable[[int, int], RenderableType]
    prompt: str = ""
    answer: Callable[[str], str | None] | None = None


class Terminal:
    """The terminal of this process, as a context manager on the main thread.

    Ctrl-C, SIGTERM and SIGHUP end :meth:`run`. ``shows`` tells whether there is a screen, ``asks`` whether somebody can
    type as well. :meth:`say`, :meth:`wake` and :meth:`end` may be called from any thread. With ``logged`` the lines go
    to the log where there is no screen, so that there is one stream of one form. ``reload`` is what SIGHUP asks a
    service for: :meth:`run` calls it. Where we were started from a terminal, that terminal is gone, and we end.
    """

    def __init__(self, logged: bool = False, reload: Callable[[], object] | None = None) -> None:
        self.shows = (
            sys.stdout is not None and sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
        )
        self.asks = self.shows and sys.stdin is not None and sys.stdin.isatty()
        self.status = 0
        self._logged = logged and not self.shows
        self._lines: deque[Text] = deque()
        self._dropped = 0
        self._last = Text()
        self._scene: Scene | None = None
        self._typed = ""
        self._hint = ""
        self._over = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sleeper, self._waker = os.pipe()
        os.set_blocking(self._sleeper, False)
        os.set_blocking(self._waker, False)
        self._reload = None if has_terminal() else reload
        self._reload_asked = False
        self._signals: AbstractContextManager[None] = told_to_end(self._told)
        self._wakeup_fd = -1
        self._modes: list[Any] | None = None
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Self:
        self._signals.__enter__()
        # Without it a signal that comes just before a wait begins is heard when the wait is over.
        self._wakeup_fd = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        if self.asks:
            self._modes = termios.tcgetattr(sys.stdin)
            modes = termios.tcgetattr(sys.stdin)
            modes[3] &= ~(termios.ECHO | termios.ICANON)
            modes[3] |= termios.NOFLSH  # a second Ctrl-C would discard what leaves the screen
            modes[6][termios.VSUSP] = b"\0"  # a stopped process would leave its screen behind
            modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)
        root = logging.getLogger()
        if self.shows and root.level < logging.CRITICAL and sys.stderr is not None and sys.stderr.isatty():
            self._handlers, root.handlers = root.handlers, [_LogLines(self, root.handlers)]
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            logging.getLogger().handlers = self._handlers
        with suppress(OSError, termios.error):  # the terminal may be gone
            self._leave_screen()
            self._flush()
            if self._modes is not None:
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._modes)
        signal.set_wakeup_fd(self._wakeup_fd)
        self._signals.__exit__(None, None, None)

    def say(self, line: str, style: str = "") -> None:
        """Show a line; later, if the alternate screen is up."""
        if self._logged:
            logs.say(line, style)
            return
        if len(self._lines) >= MAX_LINES:
            with suppress(IndexError):
                self._lines.popleft()
            self._dropped += 1
        self._last = Text(printable(line, LONGEST_LINE, words=True), style)
        self._lines.append(self._last)
        self.wake()

    def wake(self) -> None:
        """Look again at what is to be shown."""
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def _told(self, ending: signal.Signals) -> None:
        if ending is signal.SIGHUP and self._reload is not None:
            self._reload_asked = True
            self.wake()
        else:
            self.end()

    def end(self, status: int = 0) -> None:
        """Let :meth:`run` return, and the command end with ``status``."""
        self.status = status
        self._over = True
        self.wake()

    def run(self, look: Callable[[], Scene | None], entered: Callable[[], None] = lambda: None) -> None:
        """Show what ``look`` returns, and the lines while that is None, until :meth:`end` is called or a signal comes.

        ``entered`` is called when the Enter key is pressed while there is no scene.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._sleeper, selectors.EVENT_READ)
            if self.asks:
                selector.register(sys.stdin, selectors.EVENT_READ)
            while not self._over:
                if self._reload_asked and self._reload is not None:
                    self._reload_asked = False
                    self._reload()
                self._show(look())
                ready = [key.fileobj for key, _ in selector.select(_TICK if self._scene else None)]
                if self._sleeper in ready:
                    with suppress(BlockingIOError):
                        os.read(self._sleeper, 4096)
                if sys.stdin in ready:
                    scene = look()
                    if not _same(scene, self._scene):
                        continue  # what was typed was meant for another scene
                    if not self._type(entered):
                        selector.unregister(sys.stdin)
        self._leave_screen()

    # Keys.

    def _type(self, entered: Callable[[], None]) -> bool:
        """Take what was typed; False when nobody can type any more. After a whole line the rest is dropped."""
        try:
            data = os.read(sys.stdin.fileno(), 4096)
        except OSError:
            data = b""
        keys = self._decoder.decode(data)
        for key in "" if keys.startswith(_ESCAPE) else keys:  # an arrow, or another key that has no character
            if key in _ENTER:
                self._enter(entered)
                break
            if key in _DELETE:
                self._typed = self._typed[:-1]
            elif key.isprintable() and len(self._typed) < MAX_TYPED:
                self._typed += key
        return bool(data)

    def _enter(self, entered: Callable[[], None]) -> None:
        line, self._typed, self._hint = self._typed.strip(), "", ""
        if self._scene is None:
            entered()
        elif self._scene.answer is not None:
            self._hint = self._scene.answer(line) or ""

    # The screen.

    def _show(self, scene: Scene | None) -> None:
        if not _same(scene, self._scene):
            self._typed = self._hint = ""
            if self.asks:
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
        if scene is None:
            self._leave_screen()
            self._flush()
            return
        first, self._scene = self._scene is None, scene
        if first:
            console.set_alt_screen(True)
            console.show_cursor(False)
        below = self._below(scene)
        rows = console.height - len(console.render_lines(below, pad=False))
        with console:  # one write: no flicker
            console.control(Control.home())
            console.print(Screen(Group(scene.body(console.width, rows), below)), end="")

    def _below(self, scene: Scene) -> Text:
        """What stands under the body: the prompt, what is wrong with the last answer, and the latest news."""
        text = Text()
        if scene.answer is not None:
            text.append(f"{scene.prompt} ", "bold").append(self._typed).append(" ", "reverse")
        if self._hint:
            text.append(f"\n{self._hint}", "yellow")
        if self._lines:
            news = self._last.copy()
            news.truncate(max(1, console.width), overflow="ellipsis")
            text.append("\n" if text else "").append(news)
        return text

    def _leave_screen(self) -> None:
        if self._scene is None:
            return
        self._scene = None
        with console:
            console.control(Control.clear(), Control.home())
            console.show_cursor(True)
            console.set_alt_screen(False)

    def _flush(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            console.print(f"({dropped} lines were dropped)", style="yellow", highlight=False)
        while self._lines:
            console.print(_hanging(self._lines.popleft(), console), soft_wrap=True)


class _LogLines(logging.Handler):
    """The log, as lines of the terminal: what is written past it would spoil the screen."""

    def __init__(self, terminal: Terminal, instead_of: list[logging.Handler]) -> None:
        super().__init__()
        self._terminal = terminal
        self.formatter = next((handler.formatter for handler in instead_of if handler.formatter), None)

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._terminal.say(line, "dim")


def _same(scene: Scene | None, shown: Scene | None) -> bool:
    if scene is None or shown is None:
        return scene is shown
    return scene.subject is shown.subject

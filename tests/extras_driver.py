"""Runs srup's commands one after the other, each in a fork of its own, so that all share one start: JSON in, JSON out.

Each is a list of arguments with null or, if it does not end by itself, with what it prints when it is running: then it
gets SIGINT.
"""

import json
import os
import selectors
import signal
import sys
from contextlib import suppress
from importlib import import_module

from srup.cli import main


def run(arguments: list[str], until: str | None) -> tuple[int, str, str]:
    """Return status (negative: the signal that it died of), standard output and standard error."""
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        for number, (reader, writer) in enumerate(pipes, 1):
            os.dup2(writer, number)
            os.close(reader)
            os.close(writer)
        _main(arguments)
    said = {reader: b"" for reader, _ in pipes}
    with selectors.DefaultSelector() as selector:
        for reader, writer in pipes:
            os.close(writer)
            selector.register(reader, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if more := os.read(key.fd, 65536):
                    said[key.fd] += more
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                if until is not None and until in said[key.fd].decode(errors="replace"):
                    os.kill(child, signal.SIGINT)
                    until = None
    _, status = os.waitpid(child, 0)
    output, complaints = (text.decode(errors="replace") for text in said.values())
    return os.waitstatus_to_exitcode(status), output, complaints


def _main(arguments: list[str]) -> None:
    status: object = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["srup", *arguments]
        main()
        status = 0
    except SystemExit as ending:
        status = 0 if ending.code is None else ending.code
    except BaseException:  # noqa: BLE001 - a fork must never return from here
        sys.excepthook(*sys.exc_info())
        status = 70
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status if isinstance(status, int) else 71)


if __name__ == "__main__":
    with suppress(ModuleNotFoundError):  # once, not in every fork
        from srup.cli.app import COMMANDS

        for name in COMMANDS:
            import_module(f"srup.cli.{name}")
    print(json.dumps([run(*command) for command in json.load(sys.stdin)]))

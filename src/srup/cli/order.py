"""The commands that order devices about from outside, whichever worker of the server serves them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import srup

from .options import explained, identity
from .terminal import console, fail, printable, tell

__all__ = ["app"]

app = typer.Typer(help="Order the devices of a server whose workers share a Redis.", no_args_is_help=True)

_FAILED: Final = ("ACTION_UNKNOWN", "ACTION_FAIL", "JOIN_REFUSED")  # what an order came to that was answered

_Device = Annotated[int, typer.Option(parser=identity, metavar="HEX", help="Which device.")]
_Lifetime = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="After so long it is not done any more, or given up.")
]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end, and tell what it comes to.")]
_Timeout = Annotated[float | None, typer.Option(min=0.0, metavar="SECONDS", help="Wait so long (--wait); it stands.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.callback()
def _options(
    context: typer.Context,
    store: Annotated[str, typer.Option(metavar="URL", help="The Redis of the server: redis://host:port/db.")],
    identity: Annotated[int, typer.Option(parser=identity, metavar="HEX", help="The server.")],
) -> None:
    context.obj = store, identity


@app.command()
def action(
    context: typer.Context,
    device: _Device,
    number: Annotated[int, typer.Option("--action", metavar="ID", help="The number of the action, 0 to 255.")],
    lifetime: _Lifetime = None,
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Let a device do an action."""
    _order(context, lambda orders: orders.action(device, number, lifetime), wait, timeout, as_json)


@app.command()
def identify(
    context: typer.Context, device: _Device, wait: _Wait = False, timeout: _Timeout = None, as_json: _Json = False
) -> None:
    """Ask a device what it is."""
    _order(context, lambda orders: orders.identify(device), wait, timeout, as_json)


@app.command()
def update(
    context: typer.Context,
    device: _Device,
    url: Annotated[str, typer.Option(help="Where the device fetches the firmware.")],
    file: Annotated[Path | None, typer.Option(help="The firmware, for its digest; it is not uploaded.")] = None,
    digest: Annotated[str | None, typer.Option(metavar="SHA-256", help="Its digest, instead of the file.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Activate it only after: srup order activate.")] = False,
    version: Annotated[int | None, typer.Option(help="Its version, a number that grows.")] = None,
    lifetime: _Lifetime = None,
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Update the firmware of a device."""
    if (file is None) == (digest is None):
        fail("the digest of the firmware is needed: name its --file or its --digest")

    def post(orders: srup.Orders) -> srup.PostedOrder:
        named = srup.file_digest(file) if file is not None else digest or ""
        return orders.update(device, url, named, hold=hold, lifetime=lifetime, version=version)

    _order(context, post, wait, timeout, as_json)


@app.command()
def activate(
    context: typer.Context,
    update: Annotated[str, typer.Argument(metavar="ID", help="The order of the update, or its token.")],
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Let a device activate what it was to hold."""
    _order(context, lambda orders: orders.activate(update), wait, timeout, as_json)


@app.command()
def send(
    context: typer.Context,
    device: _Device,
    name: Annotated[str, typer.Argument(help="The data_id.")],
    value: Annotated[str, typer.Argument(help="The value: text, or a number with --kind.")],
    kind: Annotated[str, typer.Option(help="bytes (in hex), text, int8 to uint64, float or double.")] = "text",
    lifetime: _Lifetime = None,
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Send a device a value."""

    def post(orders: srup.Orders) -> srup.PostedOrder:
        read: dict[str, Callable[[str], Any]] = {"bytes": bytes.fromhex, "text": str, "float": float, "double": float}
        return orders.send_data(device, name, read.get(kind, int)(value), kind, lifetime=lifetime)  # type: ignore[arg-type]

    _order(context, post, wait, timeout, as_json)


@app.command()
def join(
    context: typer.Context,
    device: _Device,
    server: Annotated[
        int | None, typer.Option(parser=identity, metavar="HEX", help="The server to go to, if it is another one.")
    ] = None,
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Command a device to join this server, or another one."""
    _order(context, lambda orders: orders.command_join(device, server), wait, timeout, as_json)


@app.command()
def register(
    context: typer.Context,
    device: _Device,
    key: Annotated[Path, typer.Option(help="The public key of the device.")],
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Register the key of a device: it may join."""
    _order(context, lambda orders: orders.register(device, srup.PublicKey.load(key)), wait, timeout, as_json)


@app.command()
def remove(
    context: typer.Context, device: _Device, wait: _Wait = False, timeout: _Timeout = None, as_json: _Json = False
) -> None:
    """Drop the key of a device, without telling it."""
    _order(context, lambda orders: orders.remove(device), wait, timeout, as_json)


@app.command()
def revoke(
    context: typer.Context, device: _Device, wait: _Wait = False, timeout: _Timeout = None, as_json: _Json = False
) -> None:
    """Put a device out for good and bar its key."""
    _order(context, lambda orders: orders.revoke(device), wait, timeout, as_json)


@app.command()
def terminate(
    context: typer.Context, device: _Device, wait: _Wait = False, timeout: _Timeout = None, as_json: _Json = False
) -> None:
    """Put a device out; it may join again."""
    _order(context, lambda orders: orders.terminate(device), wait, timeout, as_json)


@app.command()
def deregister(
    context: typer.Context, device: _Device, wait: _Wait = False, timeout: _Timeout = None, as_json: _Json = False
) -> None:
    """Tell a device that it is out for good, and drop its key."""
    _order(context, lambda orders: orders.deregister(device), wait, timeout, as_json)


@app.command()
def result(
    context: typer.Context,
    order: Annotated[str, typer.Argument(metavar="ID", help="What ordering has printed.")],
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: _Json = False,
) -> None:
    """Tell what an order has come to."""
    with _orders(context) as orders:
        posted = orders.find(order)
        if not wait:
            raise typer.Exit(_told(posted, posted.report(), as_json))
        _follow(posted, timeout, as_json)


@app.command()
def waiting(context: typer.Context, as_json: _Json = False) -> None:
    """Tell how many orders no worker has taken yet, by partition."""
    with _orders(context) as orders:
        counts = orders.waiting()
    if as_json:
        print(json.dumps({str(partition): count for partition, count in counts.items()}))
        return
    for partition, count in counts.items():
        console.print(f"partition {partition}: {count}", highlight=False)


@contextmanager
def _orders(context: typer.Context) -> Iterator[srup.Orders]:
    try:
        with explained(), srup.Orders(*context.obj) as orders:
            yield orders
    except ModuleNotFoundError as error:
        fail(str(error))


def _order(
    context: typer.Context,
    post: Callable[[srup.Orders], srup.PostedOrder],
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    with _orders(context) as orders:
        posted = post(orders)
        if wait:
            _follow(posted, timeout, as_json)
        elif as_json:
            print(json.dumps({"id": posted.id, "state": "POSTED"}))
        else:
            print(posted.id)


def _follow(posted: srup.PostedOrder, timeout: float | None, as_json: bool) -> None:
    """Tell each report as it comes; status 1 when the order failed, or is not over in time."""
    status = 0
    try:
        for report in posted.reports(timeout):
            status = _told(posted, report, as_json)
    except TimeoutError as error:
        tell(str(error), "yellow")
        status = 1
    except srup.StoreError as error:
        tell(f"{error}; the order stands: srup order result {posted.id}", "yellow")
        status = 1
    except KeyboardInterrupt:
        tell(f"the order stands: srup order result {posted.id}", "yellow")
        status = 130
    raise typer.Exit(status)


def _told(posted: srup.PostedOrder, report: srup.OrderReport, as_json: bool) -> int:
    """Print a report; return the status of a command that ends with it."""
    failed = report.error is not None or report.value in _FAILED
    if as_json:
        print(json.dumps({"id": posted.id} | json.loads(report.dump())), flush=True)
    else:
        came_to = f"{report.error}: {report.text}" if report.error is not None else report.value
        known = [posted.id, report.state, None if came_to == report.state else came_to]
        print(" ".join(printable(each) for each in known if each), flush=True)
    return int(failed)

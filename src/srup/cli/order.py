"""The commands that post orders for devices, one for each verb (srup.agent.verbs), and show what became of them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_type_hints

import typer

import srup

from ..agent.verbs import VERBS, AboutUpdate, DecideJoin, Order, Register
from ..messages import Data, DataKind
from ..printable import printable
from .apps import App
from .fleets import OfServer, StoreOfServer, choose, chosen
from .following import follow, told
from .options import IdentityArgument, Json, identity, version
from .selection import Devices, Where, Yes, select
from .terminal import console, explained, fail, tell

__all__ = ["app"]

app = App(help="Command the devices of a server. It need not run now: it carries orders out when it does.")

_USAGE: Final = "srup order --store PATH|URL --identity HEX, and then the command"
_FOR_ONE: Final = (Register, DecideJoin)  # what cannot be the same for several devices

_Wait = Annotated[bool, typer.Option("--wait", help="Wait until all is over, and show what it came to.")]
_Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Stop waiting (--wait) after this time, with status 3; what was ordered stands.",
    ),
]
_WAITING: Final = {"wait": (_Wait, False), "timeout": (_Timeout, None), "as_json": (Json, False)}


@app.callback()
def _options(
    context: typer.Context,
    store: StoreOfServer = None,
    identity: OfServer = None,
) -> None:
    choose(context, store, identity)


# What an order has that is not typed as it is posted, and how it is made of what is typed.


def _digest(
    file: Annotated[Path | None, typer.Option(help="Firmware file, for its digest; it is not uploaded.")] = None,
    digest: Annotated[str | None, typer.Option(metavar="SHA-256", help="The digest itself, instead of --file.")] = None,
) -> str:
    if (file is None) == (digest is None):
        fail("the digest of the firmware is needed: name its --file or its --digest")
    with explained():
        return srup.file_digest(file) if file is not None else digest or ""


def _data(
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The value: text, or a number with --kind.")],
    kind: Annotated[DataKind, typer.Option(help="Type of the value; bytes are given in hex.")] = "text",
) -> bytes:
    read: dict[str, Callable[[str], Any]] = {"bytes": bytes.fromhex, "text": str, "float": float, "double": float}
    try:
        typed = read.get(kind, int)(value)
    except ValueError:
        fail(f"{printable(value)} is no value of the kind {kind}")
    with explained():
        return Data.encode_value(typed, kind)


def _key(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The public key of the device, PEM.")],
) -> "srup.PublicKey":
    with explained():
        return srup.PublicKey.load(key)


_MADE: Final[dict[str, Callable[..., Any]]] = {"digest": _digest, "data": _data, "key": _key}


def _typed(name: str, hint: Any, default: Any) -> Parameter:
    """Return the argument or option for a detail of an order that is typed as it is posted."""
    kind, shown = get_args(hint)
    options: dict[str, Any] = {"help": shown.help, "metavar": shown.name, "min": shown.least, "max": shown.most}
    if shown.is_identity:
        options |= {"parser": identity, "metavar": "HEX"}
    if shown.is_version:
        options |= {"parser": version, "metavar": "VERSION"}
    is_argument = default is Parameter.empty and shown.name is not None
    if is_argument:
        return _parameter(name, Annotated[kind, typer.Argument(**options)], default)
    words = [f"--{name}"] if kind is bool else []
    return _parameter(name, Annotated[kind, typer.Option(*words, **options)], default)


def _parameter(name: str, hint: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _add_command(verb: type[Order]) -> None:
    """Make the command of a verb: for which devices, its details, and whether to wait for the end."""
    hints = get_type_hints(verb, include_extras=True)
    defaults = {
        each.name: Parameter.empty if each.default is MISSING else each.default
        for each in fields(verb)
        if each.name != "posted_by"
    }
    about = verb if issubclass(verb, AboutUpdate) else None  # then the order that it is about names the device
    made = {} if about else {name: make for name, make in _MADE.items() if name in defaults}
    parameters = [_parameter("context", typer.Context)]
    if about is None:
        parameters.append(
            _parameter("device", IdentityArgument) if verb in _FOR_ONE else _parameter("device", Devices, None)
        )
    for name, default in defaults.items():
        if name in made:
            parameters += signature(made[name]).parameters.values()
        elif name != "device":
            parameters.append(_typed(name, hints[name], default))
    if about is None and verb not in _FOR_ONE:
        parameters += [_parameter("where", Where, None), _parameter("yes", Yes, False)]
    parameters += [_parameter(name, *each) for name, each in _WAITING.items()]

    def orders(fleet: "srup.Fleet", typed: dict[str, Any]) -> Iterator["srup.PostedOrder"]:
        if about is not None:
            yield fleet.post_about(about, **typed)
            return
        devices, conditions, confirmed = typed.pop("device"), typed.pop("where", None), typed.pop("yes", False)
        if verb in _FOR_ONE:
            selected = [devices]
        else:
            verb(1, **typed).checked()  # before anybody is asked
            selected = select(fleet, verb.command, devices or (), conditions, confirmed=confirmed)
        for device in selected:
            yield fleet.post(verb(device, **typed))

    def command(context: typer.Context, wait: bool, timeout: float | None, as_json: bool, **typed: Any) -> None:
        for name, make in made.items():
            typed[name] = make(**{each: typed.pop(each) for each in signature(make).parameters})
        with chosen(context, _USAGE) as fleet:
            posted: list[srup.PostedOrder] = []
            try:
                for order in orders(fleet, typed):
                    posted.append(order)
                    if not wait:
                        print(json.dumps({"id": order.id, "state": "POSTED"}) if as_json else order.id)
            except srup.StoreError as error:
                if not posted:
                    raise
                tell(f"{error}; orders were posted for the first {len(posted)} devices only", "yellow")
                raise typer.Exit(1) from None
            if wait:
                raise typer.Exit(follow(posted, timeout, as_json))

    by_keyword = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    command.__signature__ = Signature(by_keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in by_keyword}
    settings = {"ignore_unknown_options": "data" in made}  # a value may be negative
    app.command(verb.command, help=verb.__doc__, context_settings=settings)(command)


for _verb in VERBS.values():
    _add_command(_verb)


@app.command()
def result(
    context: typer.Context,
    order: Annotated[str, typer.Argument(metavar="ID", help="What ordering has printed.")],
    wait: _Wait = False,
    timeout: _Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell what an order has come to."""
    with chosen(context, _USAGE) as fleet:
        posted = fleet.find(order)
        if not wait:
            raise typer.Exit(told(posted, posted.report(), as_json))
        raise typer.Exit(follow([posted], timeout, as_json))


@app.command()
def waiting(context: typer.Context, as_json: Json = False) -> None:
    """Tell how many orders the server has not taken yet, by partition."""
    with chosen(context, _USAGE) as fleet:
        counts = fleet.waiting()
    if as_json:
        print(json.dumps({str(partition): count for partition, count in counts.items()}))
        return
    for partition, count in counts.items():
        console.print(f"partition {partition}: {count}", highlight=False)

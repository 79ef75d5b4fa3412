"""``srup keygen``: make a key pair."""

import json
from pathlib import Path
from typing import Annotated

import typer

import srup

from ..keys import SCHEMES
from .apps import App
from .options import Json
from .terminal import explained, fail, secret, show

__all__ = ["app"]

app = App()


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="File for the private key; the public key goes to PATH.pub.")],
    scheme: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEMES)}.")] = "rsa2048",
    password: Annotated[bool, typer.Option("--password", help="Ask for a password to encrypt the key.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair: PATH (mode 0600) and PATH.pub."""
    if not path.name:
        fail("PATH is empty or a folder")
    public_path = path.with_name(f"{path.name}.pub")
    for existing in (path, public_path):
        if existing.exists():
            fail(f"{existing} exists; keys are never overwritten")
    encrypted = secret("Password", confirm=True) if password else None
    with explained():
        key = srup.PrivateKey.generate(scheme)
        key.save(path, encrypted)
        key.public_key.save(public_path)
    fingerprint = key.public_key.fingerprint
    if as_json:
        made = {"key": str(path), "public_key": str(public_path), "scheme": key.scheme, "fingerprint": fingerprint}
        print(json.dumps(made))
    else:
        show(f"{path} and {public_path}: {key.scheme}, fingerprint {fingerprint}", most=None)

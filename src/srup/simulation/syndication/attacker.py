"""What an attacker who owns a broker forges where there are syndications."""

import random
from collections.abc import Callable
from typing import Any, Final

from ... import messages
from ..attacker import REPERTOIRE, Repertoire

__all__ = ["SYNDICATION"]

_Body = Callable[[random.Random, int], dict[str, Any]]

_TO_RELAYS: Final[dict[type[messages.Message], _Body]] = {
    messages.SyndicationInit: lambda chance, _: {"url": "https://evil.example/1", "sealed": bytes(32)},
    messages.SyndicatedAction: lambda chance, device: {"action_id": chance.randrange(256), "target_id": device},
    messages.SyndicatedIdRequest: lambda chance, device: {"target_id": device},
    messages.SyndicatedC2Request: lambda chance, _: {"req_id": chance.choice((7, 255)), "data": b"forged"},
    messages.SyndicatedEndRequest: lambda chance, _: {},
    messages.SyndicatedTerminate: lambda chance, _: {},
    messages.SyndicatedDeviceCount: lambda chance, _: {"count": chance.randrange(4)},
    messages.SyndicatedDeviceList: lambda chance, device: {"device_sequence": chance.randrange(4), "device_id": device},
}
_TO_SERVERS: Final[dict[type[messages.Message], _Body]] = {
    **_TO_RELAYS,
    messages.SyndicationRequest: lambda chance, _: {"sealed": bytes(32)},
    messages.SyndicatedData: lambda chance, device: {"data_id": "reading", "data": b"forged", "source_id": device},
}

SYNDICATION: Final = Repertoire(
    (*REPERTOIRE.commands, *_TO_RELAYS),
    (*REPERTOIRE.requests, *_TO_SERVERS),
    {**REPERTOIRE.bodies, **_TO_SERVERS},
    frozenset(
        {
            *(messages.SyndicationInit, messages.SyndicationRequest, messages.SyndicatedEndRequest),
            *(messages.SyndicatedTerminate, messages.SyndicatedDeviceCount, messages.SyndicatedDeviceList),
            *(messages.JoinRequest, messages.ResignRequest, messages.TerminateCommand),
            *(messages.SyndicatedAction, messages.Action, messages.Response),
        }
    ),
)

"""Secure Remote Update Protocol: signed commands and firmware updates for devices over MQTT.

The codec, the keys and the sessions need nothing but ``cryptography``. :class:`Device` and :class:`Server`, which talk
MQTT, are imported at first use; they need the extra ``srup[mqtt]``.
"""

from typing import TYPE_CHECKING, Any

from srup_native import BACKEND

from .codec import BackendInfo, Frame, Header, backend_info, decode, encode, peek, verify_many
from .errors import (
    DecodeError,
    EncodeError,
    InvalidKeyError,
    KeyServiceError,
    LeaseLostError,
    PolicyError,
    ReplayError,
    SealError,
    SignatureError,
    SrupError,
    StoreError,
    TransportError,
    UnansweredError,
    UnknownSenderError,
    UpdateError,
)
from .joinvalue import JoinValue
from .keyring import KeyRing
from .keys import PrivateKey, PublicKey
from .messages import (
    Action,
    Activate,
    Data,
    DeregisterCommand,
    DeregisterRequest,
    HumanJoinRequest,
    HumanJoinResponse,
    IdRequest,
    Initiate,
    JoinCommand,
    JoinRequest,
    Message,
    ObservationRequest,
    ObservedJoinRequest,
    ObservedJoinResponse,
    ResignRequest,
    Response,
    SyndicatedAction,
    SyndicatedC2Request,
    SyndicatedData,
    SyndicatedDeviceCount,
    SyndicatedDeviceList,
    SyndicatedEndRequest,
    SyndicatedIdRequest,
    SyndicatedTerminate,
    SyndicationInit,
    SyndicationRequest,
    TerminateCommand,
)
from .replay import ReplayWindow
from .seal import seal, unseal
from .session import Policy
from .wire import Status

if TYPE_CHECKING:
    from .agent import (
        AwayNetwork,
        CommandReader,
        Device,
        Handling,
        Outcome,
        PendingJoin,
        Refusal,
        Server,
        SyndicationDevice,
        SyndicationServer,
        UpdateOrder,
        Vitals,
    )
    from .agent.orders import OrderReport, Orders, PostedOrder
    from .agent.worker import Worker
    from .fetch import FetchPolicy, file_digest
    from .store import MemoryStore, RedisStore, SqliteStore

__version__ = "0.1.0"

_AT_FIRST_USE = {
    "AwayNetwork": "agent",
    "CommandReader": "agent",
    "Device": "agent",
    "Handling": "agent",
    "Outcome": "agent",
    "Refusal": "agent",
    "PendingJoin": "agent",
    "Server": "agent",
    "SyndicationDevice": "agent",
    "SyndicationServer": "agent",
    "UpdateOrder": "agent",
    "Vitals": "agent",
    "OrderReport": "agent.orders",
    "Orders": "agent.orders",
    "PostedOrder": "agent.orders",
    "RedisStore": "store",
    "Worker": "agent.worker",
    "FetchPolicy": "fetch",
    "file_digest": "fetch",
    "MemoryStore": "store",
    "SqliteStore": "store",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "transport":
        return import_module("srup.transport")
    module = _AT_FIRST_USE.get(name)
    if module is None:
        raise AttributeError(f"module 'srup' has no attribute {name!r}")
    return getattr(import_module(f"srup.{module}"), name)


__all__ = [
    "BACKEND",
    "Action",
    "Activate",
    "AwayNetwork",
    "BackendInfo",
    "CommandReader",
    "Data",
    "DecodeError",
    "DeregisterCommand",
    "DeregisterRequest",
    "Device",
    "EncodeError",
    "FetchPolicy",
    "Frame",
    "Handling",
    "Header",
    "HumanJoinRequest",
    "HumanJoinResponse",
    "IdRequest",
    "Initiate",
    "InvalidKeyError",
    "JoinCommand",
    "JoinRequest",
    "JoinValue",
    "KeyRing",
    "KeyServiceError",
    "LeaseLostError",
    "MemoryStore",
    "Message",
    "ObservationRequest",
    "ObservedJoinRequest",
    "ObservedJoinResponse",
    "OrderReport",
    "Orders",
    "Outcome",
    "PendingJoin",
    "Policy",
    "PolicyError",
    "PostedOrder",
    "PrivateKey",
    "PublicKey",
    "RedisStore",
    "Refusal",
    "ReplayError",
    "ReplayWindow",
    "ResignRequest",
    "Response",
    "SealError",
    "Server",
    "SignatureError",
    "SqliteStore",
    "SrupError",
    "Status",
    "StoreError",
    "SyndicatedAction",
    "SyndicatedC2Request",
    "SyndicatedData",
    "SyndicatedDeviceCount",
    "SyndicatedDeviceList",
    "SyndicatedEndRequest",
    "SyndicatedIdRequest",
    "SyndicatedTerminate",
    "SyndicationDevice",
    "SyndicationInit",
    "SyndicationRequest",
    "SyndicationServer",
    "TerminateCommand",
    "TransportError",
    "UnansweredError",
    "UnknownSenderError",
    "UpdateError",
    "UpdateOrder",
    "Vitals",
    "Worker",
    "backend_info",
    "decode",
    "encode",
    "file_digest",
    "peek",
    "seal",
    "unseal",
    "verify_many",
]

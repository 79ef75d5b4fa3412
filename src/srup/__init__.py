"""Secure Remote Update Protocol: signed commands and firmware updates for devices over MQTT.

Only the codec, its messages and their errors are imported at once; everything else, ``cryptography`` included, at its
first use. :class:`Device` and :class:`Server`, which talk MQTT, need the extra ``srup[mqtt]``. The error of a missing
package names its extra.
"""

from typing import TYPE_CHECKING

from srup_native import BACKEND

from .codec import BackendInfo, Frame, Header, Lanes, backend_info, decode, encode, peek, sign_many, verify_many
from .errors import (
    DecodeError,
    EncodeError,
    InvalidKeyError,
    KeyServiceError,
    LeaseLostError,
    MessageTooLargeError,
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
from .extras import at_first_use
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
from .seal import seal, unseal
from .wire import Status

if TYPE_CHECKING:
    from . import keyex as keyex
    from . import monitor as monitor
    from . import store as store
    from . import transport as transport
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
    from .agent.reports import OrderReport
    from .agent.worker import Worker
    from .fetch import FetchPolicy
    from .fleet import Fleet, Orders, PostedOrder, WaitingJoin
    from .images import file_digest
    from .joinvalue import JoinValue
    from .keyring import KeyRing
    from .keys import PrivateKey, PublicKey
    from .replay import ReplayWindow
    from .session import Policy
    from .store import MemoryStore, RedisStore, SqliteStore
    from .update import RestartPending

__version__ = "0.1.0"

_AT_FIRST_USE = {
    "fleet": "",
    "keyex": "",
    "monitor": "",
    "store": "",
    "transport": "",
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
    "OrderReport": "agent.reports",
    "Fleet": "fleet",
    "Orders": "fleet",
    "PostedOrder": "fleet",
    "WaitingJoin": "fleet",
    "RedisStore": "store",
    "Worker": "agent.worker",
    "FetchPolicy": "fetch",
    "file_digest": "images",
    "JoinValue": "joinvalue",
    "KeyRing": "keyring",
    "Policy": "session",
    "PrivateKey": "keys",
    "PublicKey": "keys",
    "ReplayWindow": "replay",
    "RestartPending": "update",
    "MemoryStore": "store",
    "SqliteStore": "store",
}

__getattr__ = at_first_use(__name__, _AT_FIRST_USE)


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
    "Fleet",
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
    "Lanes",
    "LeaseLostError",
    "MemoryStore",
    "Message",
    "MessageTooLargeError",
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
    "RestartPending",
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
    "WaitingJoin",
    "Worker",
    "backend_info",
    "decode",
    "encode",
    "file_digest",
    "peek",
    "seal",
    "sign_many",
    "unseal",
    "verify_many",
]

"""Key exchange: identities are registered, certified and revoked by a service, and enrolled with it by their owners.

The service is :class:`Authority` (decisions) over :class:`ServiceFolder` (files), served by :mod:`srup.keyex.service`,
which alone needs ``srup[keyex]``. A client calls :func:`enroll`.
"""

from typing import TYPE_CHECKING

from ..extras import at_first_use

if TYPE_CHECKING:
    from .authority import Authority, EnrolmentPolicy
    from .client import KeyService
    from .enrolment import Enrolment, enroll, rotate
    from .folder import ServiceFolder

_AT_FIRST_USE = {
    "Authority": "authority",
    "Enrolment": "enrolment",
    "EnrolmentPolicy": "authority",
    "KeyService": "client",
    "ServiceFolder": "folder",
    "enroll": "enrolment",
    "rotate": "enrolment",
}

__getattr__ = at_first_use(__name__, _AT_FIRST_USE)

__all__ = ["Authority", "Enrolment", "EnrolmentPolicy", "KeyService", "ServiceFolder", "enroll", "rotate"]

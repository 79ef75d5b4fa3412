"""Key exchange: identities are registered, certified and revoked by a service, and enrolled with it by their owners.

The service is :class:`Authority` (decisions) over :class:`ServiceFolder` (files), served by :mod:`srup.keyex.service`,
which alone needs ``srup[keyex]``. A client calls :func:`enroll`.
"""

from .authority import Authority, EnrolmentPolicy
from .client import KeyService
from .enrolment import Enrolment, enroll, rotate
from .folder import ServiceFolder

__all__ = ["Authority", "Enrolment", "EnrolmentPolicy", "KeyService", "ServiceFolder", "enroll", "rotate"]

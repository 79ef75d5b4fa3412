"""The demonstration behind ``srup demo``: a fleet, an update and an attacker, all of them real."""

from .scenario import BrokerKind, Check, Report, Row, Scenario

__all__ = ["BrokerKind", "Check", "Report", "Row", "Scenario"]

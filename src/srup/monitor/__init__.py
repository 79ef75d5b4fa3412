"""What operators see of running agents: metrics, health and readiness (docs/observability.md).

Needs the extra ``srup[metrics]``.
"""

from ..extras import missing_named

with missing_named():
    from .endpoint import Address, Monitor
    from .fleetmetrics import FleetCollector
    from .health import STUCK_AFTER, Problem, liveness, readiness, trouble_by_reason
    from .metrics import Collector

__all__ = [
    "STUCK_AFTER",
    "Address",
    "Collector",
    "FleetCollector",
    "Monitor",
    "Problem",
    "liveness",
    "readiness",
    "trouble_by_reason",
]

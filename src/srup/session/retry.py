"""When something is sent again: pure functions of a policy and a time.

An unanswered request is sent again after ``first_retry``, then after twice that pause and so on up to ``max_retry``,
until it is answered or expires. 0 stands for no retransmission at all.
"""

from .policy import Policy

__all__ = ["due", "first_pause", "may_repeat", "next_pause", "resumed_pause"]


def first_pause(policy: Policy, *, wanted: bool, safe: bool) -> float:
    """Return the pause before a request is sent again: 0 if that is not ``wanted``, or not ``safe``.

    It is safe if the partner tells a retransmission from a new request, or if a second request does no harm.
    """
    return policy.first_retry if wanted and safe else 0.0


def next_pause(policy: Policy, pause: float) -> float:
    """Return the pause after one more retransmission."""
    return min(2 * pause, policy.max_retry)


def resumed_pause(policy: Policy, pause: float) -> float:
    """Return the pause after a restart: what waits for long is asked soon."""
    return min(pause, policy.first_retry)


def due(expiry: float, pause: float, now: float) -> float:
    """Return when time changes something about an exchange: its next retransmission or its end."""
    return min(expiry, now + pause) if pause else expiry


def may_repeat(policy: Policy, sent: float, now: float) -> bool:
    """Return whether what was last sent at ``sent`` may be sent again at once, for its partner is here now (T9)."""
    return now >= sent + policy.first_retry

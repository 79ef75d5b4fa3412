"""T35 with all that is between an order and a worker: a real Redis, a real broker."""

import pytest

from srup import Fleet

from .fleet import SERVER, WAIT, wait_until
from .test_agent_worker import site as site
from .test_suspected_leases import FIRST, served

pytestmark = pytest.mark.process


def handed_over(site, kind, behind):
    """Stop the worker; let a device speak and orders pile up, this kind the last; return what another worker hears."""
    served(site).stop()
    heard = []
    site.devices[FIRST].send("n", 1, "uint32")
    wait_until(lambda: not site.devices[FIRST].vitals().inbox)
    orders = Fleet(site.redis.url, SERVER)
    for _ in range(behind):
        orders.action(FIRST, 7)
    posted = getattr(orders, kind)(FIRST)
    site.worker(setup=lambda server: server.on_data("n", "uint32")(lambda *arguments: heard.append(arguments[0])))
    assert [report.state for report in posted.reports(WAIT)][-1] == "DONE"
    return heard


def test_t35_a_worker_revokes_first(site):
    assert handed_over(site, "revoke", 3_000) == []


def test_t35_control_a_worker_hears_what_was_said_meanwhile(site):
    heard = handed_over(site, "identify", 10)
    wait_until(lambda: heard)
    assert heard == [FIRST]

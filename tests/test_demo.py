"""The demonstration: passes when all is well, and says so when it is not."""

import pytest

from srup.demo import Scenario, scenario
from srup.errors import PolicyError
from srup.session.freshness import Freshness

pytestmark = [pytest.mark.slow, pytest.mark.backend]


def _scenario(devices: int = 3) -> Scenario:
    return Scenario(devices, "ed25519", image_size=100_000, broker="amqtt")


def test_everything_happens_as_it_should() -> None:
    heard: list[tuple[str, int, int]] = []
    stage = Scenario(
        4, "ed25519", image_size=100_000, broker="amqtt", progress=lambda *progress: heard.append(progress)
    )
    report = stage.run()
    assert [check for check in report.checks if not check.passed] == []
    assert report.passed
    assert [row.update for row in report.rows] == ["activated", "activated", "refused (FF)", "activated"]
    assert [row.refused for row in report.rows] == [2, 1, 0, 0]
    assert report.attacks == report.refused == 4
    assert {(phase, total) for phase, done, total in heard if done == total} == {
        ("Generating ed25519 keys", 5),
        ("Joining", 4),
        ("Attacking", 4),
        ("Updating", 4),
    }


def test_an_attack_that_works_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the guard against redirection off, the redirected command is carried out and the report must say so."""
    guarded = Freshness.check_token

    def unguarded(self: Freshness, *arguments: object) -> object:
        try:
            return guarded(self, *arguments)  # type: ignore[arg-type]
        except PolicyError:
            return None

    monkeypatch.setattr(Freshness, "check_token", unguarded)
    stage = _scenario()
    stage._patience = 20.0
    report = stage.run()
    failed = {check.what for check in report.checks if not check.passed}
    assert not report.passed
    assert "a redirected command is refused" in failed


def test_a_tampering_that_goes_unnoticed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario.FirmwareHost, "tamper_for", lambda self, *devices: None)
    report = _scenario().run()
    assert "a tampered download is refused" in {check.what for check in report.checks if not check.passed}


def test_too_few_devices() -> None:
    with pytest.raises(ValueError, match="at least 3 devices"):
        Scenario(2)

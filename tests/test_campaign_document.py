"""A campaign file: what it may say, and where it says what makes no sense; times, shares and windows."""

from datetime import datetime, time
from zoneinfo import ZoneInfo

import pytest

from srup import file_digest
from srup.campaign import CampaignFileError, read
from srup.campaign.schedule import Daily, Size, as_share, duration, shown_duration, zone
from srup.fleet import FleetDevice, where
from srup.store.directory import KnownDevice
from srup.versions import parse_version

WHOLE = """\
name = "locks-42"
[firmware]
file = "firmware.bin"
url = "https://updates.example/firmware.bin"
version = 42
types = ["lock"]
[target]
where = "tag.site=berlin and version<42"
late = true
[[group]]
size = 5
hold = "24h"
[[group]]
size = "25%"
[[group]]
size = "100%"
[gate]
success = "95%"
stop = { failures = 3, share = "5%" }
[pace]
per_minute = 60
at_once = 20
timeout = "2h"
tries = 3
[window]
start = 2026-12-01T00:00:00Z
end = 2026-12-14T00:00:00Z
daily = "02:00-05:00"
zone = "device"
[activation]
when = "window"
confirm = true
[approval]
people = 2
"""
BERLIN = ZoneInfo("Europe/Berlin")


def load(text, folder):
    return read(text, "locks.toml", folder, where)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "firmware.bin").write_bytes(b"firmware")
    return tmp_path


def test_a_whole_file(folder):
    document = load(WHOLE, folder)
    assert (document.name, document.firmware.digest) == ("locks-42", file_digest(folder / "firmware.bin"))
    assert (document.firmware.size, document.firmware.version, document.firmware.types) == (8, 42, ("lock",))
    assert [(str(group.size), group.hold) for group in document.groups] == [("5", 86400.0), ("25 %", 0.0), ("100 %", 0)]
    assert (document.gate.success, document.gate.stop) == (0.95, (3, 0.05))
    assert (document.pace.timeout, document.pace.tries, document.pace.pause) == (7200.0, 3, 600.0)
    assert document.window.end - document.window.start == 13 * 86400.0
    assert document.held
    assert document.zone_of({"zone": "Europe/Berlin"}) == BERLIN
    with pytest.raises(ValueError, match="no time zone"):
        document.zone_of({})
    shown = document.fields()
    assert shown["window"]["daily"] == "02:00-05:00"
    assert shown["groups"][1] == {"size": "25%", "hold": 0.0}
    assert shown["gate"]["stop"] == {"failures": 3, "share": 0.05}


def test_little_is_needed(folder):
    document = load(
        f'name = "a"\n[firmware]\nurl = "https://a.example/f"\ndigest = "{"0" * 64}"\n[target]\ndevices = ["d1"]',
        folder,
    )
    assert (document.target.devices, len(document.groups), document.held) == (frozenset({0xD1}), 1, False)


@pytest.mark.parametrize(
    ("now", "instead", "told"),
    [
        ('name = "locks-42"', "", "line 1, column 1: 'name' is missing"),
        ('name = "locks-42"', 'name = "a b"', "line 1, column 1: name: 'a b' is no name"),
        ('name = "locks-42"', 'name = "locks-42"\ncolour = 1', "line 2, column 1: unknown key 'colour'"),
        (
            "version = 42",
            'version = "4.2.0-rc1"',
            "line 5, column 1: version: '4.2.0-rc1' is no version",
        ),
        ("version = 42", "version = -1", "line 5, column 1: version must be an int"),
        ("https://updates", "ftp://updates", "line 4, column 1: url:"),
        ("firmware.bin", "missing.bin", "line 3, column 1: file: "),
        ('types = ["lock"]', 'types = "lock"', "line 6, column 1: types: 'lock' is no list"),
        ("version<42", "vertion<42", "line 8, column 1: where: vertion cannot be compared"),
        ("late = true", 'late = "yes"', "line 9, column 1: late: 'yes' is neither true nor false"),
        ("size = 5\n", "size = 0\n", "line 11, column 1: size: 0 is neither a number of devices"),
        ('size = "25%"', 'size = "125%"', "line 14, column 1: size: '125%' is no percentage"),
        ('size = "25%"', 'sice = "25%"', "line 14, column 1: [group] unknown key 'sice'; known are size, hold"),
        ("failures = 3", "failure = 3", "line 19, column 10: [gate.stop] unknown key 'failure'"),
        ('share = "5%"', "share = 5", "line 19, column 24: share: 5 is no percentage"),
        ('timeout = "2h"', "timeout = 7200", "line 23, column 1: timeout: 7200 is no time"),
        ('timeout = "2h"', 'timeout = "0s"', "line 23, column 1: timeout: it must be more than 0 s"),
        ("tries = 3", 'tries = 3\npause = "5s"', "line 25, column 1: pause: it must be at least a minute"),
        ("00:00:00Z\nend", "00:00:00\nend", "line 26, column 1: start: 2026-12-01 00:00:00 is no time with a zone"),
        ("end = 2026", "end = 2025", "line 27, column 1: end: the campaign ends before it starts"),
        ('"02:00-05:00"', '"2-5"', "line 28, column 1: daily: '2-5' is no part of a day"),
        ('zone = "device"', 'zone = "Berlin"', "line 29, column 1: zone: 'Berlin' is no time zone"),
        ('zone = "device"', "", "line 25, column 1: [window] daily and zone go together"),
        ('daily = "02:00-05:00"\nzone = "device"', "", "line 30, column 1: [activation] when is 'window'"),
        (
            'when = "window"',
            'when = "soon"',
            "line 31, column 1: when: 'soon' is none of 'at once', 'window'",
        ),
        ("people = 2", "people = true", "line 34, column 1: people: True is no number"),
        ("[approval]", "[approval", "(at line 33, column 10)"),
        ('where = "tag.site=berlin and version<42"\n', "", "line 7, column 1: [target] names nobody"),
        ("[gate]", "gate = 3\n[gates]", "gate"),
        ("people = 2", "people = 2\n[extra]\na = 1", "line 35, column 1: unknown key 'extra'"),
    ],
)
def test_a_mistake_is_named_with_its_place(folder, now, instead, told):
    assert now in WHOLE
    with pytest.raises(CampaignFileError) as error:
        load(WHOLE.replace(now, instead), folder)
    assert str(error.value).startswith("locks.toml")
    assert told in str(error.value)


def test_a_digest_beside_a_file_must_be_its_own(folder):
    text = WHOLE.replace("version = 42", f'digest = "{"0" * 64}"')
    with pytest.raises(CampaignFileError, match=r"line 5, column 1: digest: the file firmware.bin has the digest"):
        load(text, folder)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("30min", 1800.0), ("1h 30min", 5400.0), ("1.5 h", 5400.0), ("7d", 604800.0)]
)
def test_times(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2", "2 weeks", "-2h", "2h and", 7, None, "99999d", True])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"time|ten years"):
        duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7500, "2 h 5 min"), (3 * 86400, "3 d"), (90061, "1 d 1 h")],
)
def test_times_are_shown(seconds, shown):
    assert shown_duration(seconds) == shown


def test_sizes():
    assert [Size.read(each).of(10) for each in (3, "25%", "100%", "1%")] == [3, 3, 10, 1]
    assert Size.read("10%").of(70) == 7  # not 8: 0.1 * 70 is a little more than 7
    for wrong in (0, -1, "0%", "101%", 1.5, True, "x", None):
        with pytest.raises(ValueError, match=r"percentage|nobody"):
            Size.read(wrong)
    with pytest.raises(ValueError, match="percentage"):
        as_share("5")


def at(text, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("daily", "now", "begin", "hours"),
    [
        ("02:00-05:00", at("2026-07-01 01:00"), at("2026-07-01 02:00"), 3.0),
        ("02:00-05:00", at("2026-07-01 02:00"), at("2026-07-01 02:00"), 3.0),
        ("02:00-05:00", at("2026-07-01 05:00"), at("2026-07-02 02:00"), 3.0),
        ("22:00-04:00", at("2026-07-01 03:59"), at("2026-06-30 22:00"), 6.0),
        ("22:00-04:00", at("2026-07-01 04:00"), at("2026-07-01 22:00"), 6.0),
        # 29 March 2026: 02:00 to 03:00 is left out; 25 October: it comes twice.
        ("02:00-05:00", at("2026-03-29 00:00"), at("2026-03-29 03:00"), 2.0),
        ("02:15-02:45", at("2026-03-29 00:00"), at("2026-03-29 03:15"), 0.5),
        ("02:30-03:00", at("2026-03-29 00:00"), at("2026-03-29 03:30"), 0.5),
        ("01:00-02:30", at("2026-03-29 00:00"), at("2026-03-29 01:00"), 1.5),
        ("22:00-04:00", at("2026-03-28 23:00"), at("2026-03-28 22:00"), 5.0),
        ("02:00-05:00", at("2026-10-25 00:00"), at("2026-10-25 02:00"), 4.0),
        ("01:00-02:30", at("2026-10-25 00:00"), at("2026-10-25 01:00"), 1.5),
        ("01:00-02:30", at("2026-10-25 02:15", fold=1), at("2026-10-26 01:00"), 1.5),  # not a second time
        ("02:15-02:45", at("2026-10-25 02:15", fold=1), at("2026-10-26 02:15"), 0.5),
        ("22:00-04:00", at("2026-10-24 23:00"), at("2026-10-24 22:00"), 7.0),
    ],
)
def test_a_daily_window_opens_once_a_day_whatever_the_clock_does(daily, now, begin, hours):
    assert Daily.read(daily).opening(now, BERLIN) == (begin, begin + hours * 3600.0)


def test_a_window_goes_by_the_zone(folder):
    daily = Daily(time(2), time(5))
    tokyo = daily.opening(at("2026-07-01 12:00"), zone("Asia/Tokyo"))
    assert datetime.fromtimestamp(tokyo[0], ZoneInfo("UTC")).isoformat() == "2026-07-01T17:00:00+00:00"


@pytest.mark.parametrize("wrong", ["", "Berlin", "../etc/passwd", 7, None, "Europe/"])
def test_what_is_no_zone(wrong):
    with pytest.raises(ValueError, match="no time zone"):
        zone(wrong)


@pytest.mark.parametrize("wrong", ["", "02:00", "02:00-02:00", "25:00-26:00", "2:00-5:00", 5])
def test_what_is_no_part_of_a_day(wrong):
    with pytest.raises(ValueError, match="part of a day"):
        Daily.read(wrong)


def test_a_file_as_an_operator_writes_it(folder):
    text = """\
name = "locks-4.2.0"
[firmware]
file = "firmware.bin"                 # its digest and size are computed
url = "https://updates.example/firmware-4.2.0.bin"
version = "4.2.0"
types = ["lock"]
[target]
where = "tag.site=berlin and type=lock and firmware.version<4.2.0"
late = true
[[group]]
size = 5
hold = "24h"
[[group]]
size = "25%"
[[group]]
size = "100%"
[gate]
success = "95%"
stop = { failures = 3, share = "5%" }
[pace]
per_minute = 60
at_once = 20
timeout = "2h"
tries = 3
[window]
start = 2026-12-01T00:00:00Z
end = 2026-12-14T00:00:00Z
then = "stop ordering"
daily = "02:00-05:00"
zone = "device"
[activation]
when = "window"
confirm = true
[approval]
people = 2
"""
    document = load(text, folder)
    assert document.firmware.version == parse_version("4.2.0")
    assert document.fields()["firmware"]["version"] == "4.2.0"
    assert (document.firmware.types, document.target.late, document.approval.people) == (("lock",), True, 2)
    holds = where(document.target.where)
    assert [holds(device(version), 0.0) for version in ("7", "4.1.9", "4.2.0", "4.10.0")] == [True, True, False, False]


def device(version):
    facts = {"version": str(parse_version(version)), "tag site": "berlin", "tag type": "lock"}
    return FleetDevice.of(KnownDevice(0xD1, None, None, facts))

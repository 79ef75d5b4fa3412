"""The parts of the console that need no server: users, sessions, forms, what is done once, plots and words."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from srup.agent.verbs import VERBS, DoAction, Register, SendData, Update
from srup.console import Role, Users
from srup.console.attempts import Attempts
from srup.console.batches import Batch, Batches
from srup.console.census import Census
from srup.console.exchanges import is_refused
from srup.console.guard import host_of
from srup.console.notices import Notices
from srup.console.once import Done, Once
from srup.console.plots import Line, Part, Step, bar, columns, steps
from srup.console.rendering import static_files
from srup.console.serving import Serving
from srup.console.sessions import Sessions
from srup.console.users import Power
from srup.console.verbforms import DANGEROUS, verb_forms
from srup.console.visit import Values
from srup.console.words import ago, iso, left, shape, short
from srup.errors import StoreError

from .fleet import key_of

PASSWORD = "correct horse battery"


@pytest.fixture
def users(tmp_path):
    return Users(tmp_path / "users.json")


# --- users and sessions


def test_the_file_of_users(users):
    assert (users.all(), users.find("ada"), users.path.exists()) == ([], None, False)
    users.add("ada", Role.ADMINISTRATOR, PASSWORD)
    assert users.path.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in users.path.read_text()
    again = Users(users.path)
    assert again.check("ada", PASSWORD) == again.find("ada")
    assert again.check("ada", PASSWORD + "x") is None
    assert again.check("eve", PASSWORD) is None
    assert again.secret == users.secret
    with pytest.raises(ValueError, match="there is a user ada already"):
        users.add("ada", Role.VIEWER, PASSWORD)
    with pytest.raises(ValueError, match="there are users already"):
        users.add("eve", Role.ADMINISTRATOR, PASSWORD, first=True)
    again.remove("ada")
    assert users.find("ada") is None
    with pytest.raises(ValueError, match="there is no user ada"):
        users.remove("ada")


@pytest.mark.parametrize("name", ["", "<b>", "a b", "-a", "a" * 65, "é", "a\n"])
def test_names_of_users_are_plain(users, name):
    with pytest.raises(ValueError, match="is no name of a user"):
        users.add(name, Role.VIEWER, PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 201])
def test_passwords_have_a_length(users, password):
    with pytest.raises(ValueError, match="a password has 10 to 200 characters"):
        users.add("ada", Role.VIEWER, password)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"secret": "", "users": []}',
        '{"secret": "", "users": {"a": {"role": "boss", "salt": "", "scrypt": ""}}}',
        '{"secret": "", "users": {"a": {"role": "viewer"}}}',
        '{"secret": "xyz", "users": {}}',
    ],
)
def test_a_file_that_is_none_lets_nobody_in_and_stays(users, content):
    users.path.write_text(content)
    for ask in (users.all, lambda: users.check("a", ""), lambda: users.add("ada", Role.VIEWER, PASSWORD)):
        with pytest.raises(ValueError, match="is no file of users of the console"):
            ask()
    assert users.path.read_text() == content


def test_the_powers_of_the_roles():
    assert {role: {power.name for power in role.powers} for role in Role} == {
        Role.VIEWER: {"LOOK"},
        Role.OPERATOR: {"LOOK", "ORDER", "JOIN", "STEER"},
        Role.APPROVER: {"LOOK", "APPROVE"},
        Role.ADMINISTRATOR: {power.name for power in Power},
    }


def test_a_cookie_of_another_console_is_none(users, tmp_path):
    others = Users(tmp_path / "others.json")
    for each in (users, others):
        each.add("ada", Role.ADMINISTRATOR, PASSWORD)
    ours, theirs = Sessions(users), Sessions(others)
    session = ours.begin(users.find("ada"), 1000.0)
    assert ours.read(ours.cookie(session), 1001.0) == session
    assert theirs.read(ours.cookie(session), 1001.0) is None
    assert ours.read("", 1001.0) is None
    assert ours.read("nonsense", 1001.0) is None
    assert ours.read(ours.cookie(session), 1000.0 + 7200.0) is None
    later = ours.renewed(session, 1000.0 + 7000.0)
    assert ours.read(ours.cookie(later), 1000.0 + 7300.0) == later
    assert ours.read(ours.cookie(later), 900.0) is None  # from the future


def test_failed_attempts_are_counted_for_each_name():
    attempts = Attempts(rate=0.1, burst=2.0)
    assert [attempts.begin("ada", 0.0) for _ in range(3)] == [True, True, False]
    assert attempts.begin("eve", 0.0)
    attempts.succeeded("ada")
    assert [attempts.begin("ada", 0.0) for _ in range(2)] == [True, False]
    assert [attempts.begin("ada", 10.0) for _ in range(2)] == [True, False]


# --- what is done once


def test_what_comes_at_the_same_time_is_done_once():
    once, done, go_on = Once(), [], threading.Event()

    def act():
        done.append(1)
        assert go_on.wait(60)
        return Done("/there", "done")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(once.do, "key", act) for _ in range(4)]
        go_on.set()
        assert {future.result(60) for future in futures} == {Done("/there", "done")}
    assert done == [1]
    assert once.do("another", lambda: Done("/elsewhere")) == Done("/elsewhere")


def test_what_failed_was_not_done():
    once = Once()
    with pytest.raises(ZeroDivisionError):
        once.do("key", lambda: 1 / 0)
    assert once.do("key", lambda: Done("/there")) == Done("/there")


def test_only_the_newest_are_remembered():
    once = Once(remembered=2)
    for number in (1, 2, 3):
        once.do(str(number), lambda number=number: Done(str(number)))
    assert once.do("3", lambda: Done("again")) == Done("3")
    assert once.do("1", lambda: Done("again")) == Done("again")


def test_a_notice_is_shown_once_and_to_its_session():
    notices = Notices()
    name = notices.leave("mine", "done")
    assert notices.take(name, "theirs") == ""
    assert notices.take(name, "mine") == "done"
    assert notices.take(name, "mine") == ""


def test_orders_that_were_given_together_are_found_again():
    batches = Batches()
    numbers = [
        batches.add(Batch(f"batch {each}", "ada", each, (f"d0.{each:032x}", f"d1.{each:032x}"))) for each in range(300)
    ]
    assert batches.find(numbers[0]) is None
    assert batches.find(numbers[-1]).what == "batch 299"
    assert [batch.what for _, batch in batches.of_device(0xD1, 2)] == ["batch 299", "batch 298"]
    assert batches.of_device(0xD) == []


# --- devices


def test_a_census_that_cannot_be_taken_says_so_and_recovers():
    trouble = [StoreError("the disk is gone")]

    def devices():
        if trouble:
            raise trouble.pop()
        return iter(())

    census = Census(SimpleNamespace(devices=devices), lambda: 5.0)
    with pytest.raises(StoreError, match="the disk is gone"):
        census.snapshot()
    census.outdated()
    assert (census.snapshot().devices, census.snapshot().at) == ([], 5.0)


# --- forms


def values(**typed):
    return Values(list(typed.items()))


def test_a_form_makes_the_order_of_what_was_typed():
    forms = verb_forms()
    key = key_of(0xD1).public_key
    url, digest = "https://updates.example/f", "ab" * 32
    assert forms["action"].check(1, values(action_id=" 3 "), "ada") == DoAction(1, 3, posted_by="ada")
    assert forms["action"].check(1, values(action_id="3", lifetime="1.5")) == DoAction(1, 3, 1.5)
    assert forms["update"].check(1, values(url=url, digest=digest.upper(), hold="1", version="42")) == Update(
        1, url, digest, True, 42
    )
    assert forms["register"].check(1, values(key=key.to_pem().decode())) == Register(1, key)
    assert forms["send"].check(1, values(data_id="x", value=" text ", kind="text")) == SendData(1, "x", b" text ")
    assert forms["send"].check(1, values(data_id="x", value="00ff", kind="bytes")) == SendData(1, "x", b"\x00\xff")
    order = forms["cancel"].check(0xD1, values(update=f"d1.{'ab' * 16}"))
    assert order.update == "ab" * 16


@pytest.mark.parametrize(
    ("verb", "typed", "said"),
    [
        ("action", {"action_id": "256"}, "action_id"),
        ("action", {"action_id": ""}, "action_id: '' is no number"),
        ("action", {"action_id": "3", "lifetime": "-1"}, "lifetime"),
        ("update", {"url": "ftp://x/y", "digest": "ab" * 32}, "url"),
        ("update", {"url": "https://x/y", "digest": "ab"}, "digest"),
        ("send", {"data_id": "x", "value": "one", "kind": "int8"}, "is no value of the type int8"),
        ("send", {"data_id": "x", "value": "1", "kind": "colour"}, "is no type of a value"),
        ("register", {"key": "nonsense"}, "key: "),
        ("cancel", {"update": f"d2.{'ab' * 16}"}, "is an order for another device"),
        ("join", {"server": "xyz"}, "server: "),
        ("tag", {"name": "<b>", "value": "x"}, "is no name of a tag"),
    ],
)
def test_what_makes_no_sense_is_named(verb, typed, said):
    with pytest.raises(Exception, match=said):
        verb_forms()[verb].check(0xD1, values(**typed))


def test_the_dangerous_verbs_are_verbs():
    assert set(VERBS) >= DANGEROUS
    assert {form.verb.verb for form in verb_forms().values() if form.dangerous} == DANGEROUS


# --- what is shown


def test_plots_are_svg_that_says_in_words_what_it_shows():
    drawn = [
        bar([Part("good", "<healthy>", 3), Part("bad", "failed", 1), Part("idle", "none", 0)]),
        bar([]),
        columns([0, 5, 1], ["a", "b", "<c>"], "heard & seen"),
        steps(
            [Step("good", "ok", [(0.0, 0.0), (5.0, 2.0)])],
            [Line("bad", "stop", 3)],
            0.0,
            10.0,
            [(0.0, "now")],
            "course",
        ),
        steps([], [], 5.0, 5.0, [], "nothing"),
    ]
    for each in drawn:
        root = ElementTree.fromstring(str(each))
        assert root.get("role") == "img"
        assert "style" not in str(each)
    assert ElementTree.fromstring(str(drawn[0])).get("aria-label") == "3 <healthy>, 1 failed"


def test_times_in_words():
    assert [ago(at, 100_000.0) for at in (None, 99_990.0, 99_800.0, 90_000.0, 0.0)] == [
        *("never", "just now", "3 min ago", "3 h ago", "1 d ago"),
    ]
    assert [left(at, 0.0) for at in (-5.0, 59.9, 61.0, 7300.0)] == ["0:00", "0:59", "1:01", "2 h 1 min"]
    assert (iso(0.0), iso(1e30)[:3]) == ("1970-01-01T00:00:00Z", "100")
    assert (short("abcdef", 4), short("abc", 4)) == ("abc…", "abc")
    assert [shape(word) for word in ("ACTIVATED", "failed", "action_success", "nonsense")] == [
        "good",
        "bad",
        "good",
        "idle",
    ]


@pytest.mark.parametrize(
    ("outcome", "refused"),
    [
        ("accepted", False),
        ("sent", False),
        ("repeated", False),
        ("ACTION_SUCCESS", False),
        ("ACTION_UNKNOWN", True),
        ("UPDATE_FAIL_DIGEST", True),
        ("JOIN_REFUSED", True),
        ("unexpected: it is no member", True),
        ("FAILED: PolicyError", True),
    ],
)
def test_what_counts_as_refused(outcome, refused):
    assert is_refused(SimpleNamespace(outcome=outcome)) is refused


def test_the_pages_need_no_script_or_style_of_their_own():
    from importlib.resources import files

    folder = files("srup.console") / "templates"
    for template in folder.iterdir():
        text = template.read_text("utf-8")
        assert "style=" not in text, template.name
        assert "<script>" not in text, template.name
        assert not [word for word in text.split() if word.startswith("on") and "=" in word and "on=" not in word[2:]]
        assert "|safe" not in text, template.name
    assert {name.partition(".")[0] for name in static_files()} == {"console", "icon"}
    assert (
        "https://"
        not in static_files()[next(name for name in static_files() if name.endswith(".css"))].content.decode()
    )


# --- where it listens


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost:1", "localhost"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("Example.ORG", "example.org"), ("", "")],
)
def test_the_name_in_a_host_header(header, host):
    assert host_of(header) == host


def test_it_listens_on_loopback_unless_there_is_a_certificate(tmp_path):
    with Serving.at("127.0.0.1", 0, frozenset(), None, None) as serving:
        assert serving.url.startswith("http://127.0.0.1:")
        assert serving.names == {"localhost", "127.0.0.1", "::1"}
        assert not serving.secure
    with pytest.raises(ValueError, match="could read passwords"):
        Serving.at("0.0.0.0", 0, frozenset(), None, None)
    with pytest.raises(ValueError, match="go together"):
        Serving.at("127.0.0.1", 0, frozenset(), tmp_path / "cert.pem", None)
    with pytest.raises(ValueError, match="do not load"):
        Serving.at("127.0.0.1", 0, frozenset(), tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(ValueError, match="needs --name"):
        Serving.at("0.0.0.0", 0, frozenset(), tmp_path / "cert.pem", tmp_path / "key.pem")
    certificate, key = host_certificate(tmp_path)
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1"):
        Serving.at("192.0.2.1", 0, frozenset(), certificate, key)


def test_with_a_certificate_it_is_https(tmp_path):
    certificate, key = host_certificate(tmp_path)
    with Serving.at("0.0.0.0", 0, frozenset({"Console.example"}), certificate, key) as serving:
        assert serving.url.startswith("https://Console.example:")
        assert serving.names == {"console.example"}
        assert serving.secure


def host_certificate(folder):
    from srup.keyex.certificates import CertificateAuthority

    key, chain = CertificateAuthority.create("test", 1.7e9).issue_host(["127.0.0.1"], 1.7e9)
    (folder / "host.crt").write_bytes(chain)
    (folder / "host.key").write_bytes(key)
    return folder / "host.crt", folder / "host.key"


def test_the_users_of_a_file_are_json(users):
    users.add("ada", Role.VIEWER, PASSWORD)
    told = json.loads(users.path.read_text())
    assert set(told) == {"secret", "users"}
    assert told["users"]["ada"]["role"] == "viewer"

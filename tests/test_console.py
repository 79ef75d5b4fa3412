"""The console, asked as a browser asks it: over a server with a database and devices on a network in memory."""

import json
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from srup import Fleet, SqliteStore, file_digest
from srup.agent.facts import TAG
from srup.agent.verbs import VERBS
from srup.campaign import At, State
from srup.console import Role, Site, Users, application
from srup.console.live import Streams
from srup.fleet import Campaigns, Verdict
from srup.fleet.auditfile import read_export
from srup.records import Changes, Fact, KeyRecord
from srup.store.mailboxes import campaigns_at

from .asgi_client import Browser
from .fleet import FIRMWARE, SERVER, URL, key_of
from .fleet import Fleet as World

PASSWORD = "correct horse battery"
PEOPLE = {"ada": Role.ADMINISTRATOR, "otto": Role.OPERATOR, "ann": Role.APPROVER, "vera": Role.VIEWER}
HTML = "<b>lab</b> & 'co'"
CAMPAIGN = f"""\
name = "locks"
[firmware]
digest = "{{digest}}"
url = "{URL}"
version = 42
[target]
share = "100%"
[[group]]
size = 1
[[group]]
size = "100%"
[gate]
success = "100%"
[approval]
people = 1
"""


class Place(SimpleNamespace):
    """A server, its fleet, a console over it, and a browser for each user."""

    def browser(self, name=None):
        """A browser, with the cookie of a session as a log-in gives it."""
        browser = Browser(self.app)
        if name is not None:
            session = self.site.sessions.begin(self.users.find(name), self.site.clock())
            browser.cookies[self.site.cookie] = self.site.sessions.cookie(session)
        return browser

    def carry_out(self):
        """Let the server and its devices do what was ordered."""
        self.world.settle()
        self.site.census.outdated()


@pytest.fixture(scope="module")
def users_file(tmp_path_factory):
    """The password's digest takes a while, so it is made once."""
    path = tmp_path_factory.mktemp("users") / "users.json"
    users = Users(path)
    for name, role in PEOPLE.items():
        users.add(name, role, PASSWORD)
    return path


@pytest.fixture
def place(tmp_path, users_file):
    (tmp_path / "users.json").write_bytes(users_file.read_bytes())
    options = {"store": SqliteStore(tmp_path / "server.db"), "admission": "human", "moderation": "orders"}
    world = World(tmp_path, 0, server_options=options)
    world.clock.now = time.time()
    now = SimpleNamespace(ahead=0.0)
    for identity in (0xD0, 0xD1, 0xD2):
        description = HTML if identity == 0xD2 else f"device {identity:x}"
        device = world.add(identity, join="human", description=description)
        device.on_join_value(lambda value: None)
        device.on_activate(lambda path: None)
        device.on_action(3)(lambda sender: None)
    world.start().settle()
    with Fleet(tmp_path / "server.db", SERVER) as fleet:
        users = Users(tmp_path / "users.json")
        site = Site(fleet, users, clock=lambda: time.time() + now.ahead)
        for join in fleet.joins():
            fleet.decide_join(join.device, "accept", join)
        world.settle()
        for identity in world.devices:
            fleet.identify(identity)
        world.settle()
        assert world.all_joined()
        yield Place(world=world, fleet=fleet, users=users, site=site, app=application(site), now=now, folder=tmp_path)
    world.server.stop()


# --- who gets in


def test_a_stranger_sees_the_log_in_and_nothing_else(place):
    stranger = place.browser()
    for path in ("/", "/devices", "/devices/d0", "/audit/export", "/campaigns/x", "/nonsense"):
        answer = stranger.get(path)
        assert "Password" in answer.words
        assert "device d0" not in answer.text
    assert stranger.get("/live?at=/").status == 204
    assert stranger.log_in("ada", "something else").status == 401
    assert stranger.log_in("nobody", PASSWORD).status == 401
    assert stranger.get("/devices").status == 401
    assert "device d0" in place.browser("vera").get("/devices").words


def test_after_the_log_in_one_is_where_one_wanted_to_be(place):
    stranger = place.browser()
    asked = stranger.get("/devices?where=member%3Dyes")
    answer = stranger.submit(asked, "/login", name="vera", password=PASSWORD)
    assert (answer.path, answer.status) == ("/devices?where=member%3Dyes", 200)
    for elsewhere in ("//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"):
        stranger = place.browser()
        page = stranger.submit(stranger.get("/login"), "/login", name="vera", password=PASSWORD, next=elsewhere)
        assert page.path == "/"


@pytest.mark.slow
def test_attempts_to_log_in_are_bounded(tmp_path, users_file, place):
    site = Site(place.fleet, place.users, clock=place.site.clock)
    browser = Browser(application(site))
    for _ in range(7):
        assert browser.log_in("ada", PASSWORD).words.startswith("Overview")
        browser.cookies.clear()
    answers = [browser.log_in("ada", "wrong").status for _ in range(6)]
    assert answers == [401] * 5 + [429]
    assert browser.log_in("ada", PASSWORD).status == 429
    place.now.ahead += 31.0
    assert browser.log_in("ada", PASSWORD).status == 200


def test_cookies_are_for_this_site_alone(place):
    browser = place.browser()
    browser.log_in("ada", PASSWORD)
    [cookie] = [each for each in browser.set_cookies if each.startswith("srup-5e=")]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie
    secure = Browser(application(Site(place.fleet, place.users, secure=True)))
    secure.log_in("ada", PASSWORD)
    assert all("Secure" in each for each in secure.set_cookies)
    assert any(each.startswith("__Host-srup-5e=") for each in secure.set_cookies)


def test_a_cookie_that_was_changed_is_none(place):
    browser = place.browser("vera")
    value = browser.cookies["srup-5e"]
    browser.cookies["srup-5e"] = value[:-2] + ("AA" if value[-2:] != "AA" else "BB")
    assert browser.get("/devices").status == 401


def test_a_session_ends(place):
    for end in ("log out", "removed", "unused", "at last"):
        browser = place.browser("otto")
        before = dict(browser.cookies)
        assert browser.get("/").status == 200
        if end == "log out":
            browser.submit(browser.get("/"), "/logout")
        elif end == "removed":
            place.users.remove("otto")
        elif end == "unused":
            place.now.ahead += 2 * 3600.0
        else:
            for _ in range(13):
                place.now.ahead += 3500.0
                browser.get("/")
        browser.cookies = before if end != "at last" else browser.cookies
        assert browser.get("/devices").status == 401, end
        if end == "removed":
            place.users.add("otto", Role.OPERATOR, PASSWORD)


def test_a_role_that_was_changed_counts_at_once(place):
    browser = place.browser("otto")
    told = json.loads(place.users.path.read_text())
    told["users"]["otto"]["role"] = "viewer"
    place.users.path.write_text(json.dumps(told))
    assert "may not give orders" in browser.get("/order?device=d0").words
    told["users"]["otto"]["scrypt"] = "0" * 64
    place.users.path.write_text(json.dumps(told))
    assert browser.get("/").words.startswith("Log in")


def test_the_first_one_comes_by_a_link_that_works_once(tmp_path, place):
    users = Users(tmp_path / "none.json")
    site = Site(place.fleet, users)
    browser = Browser(application(site))
    assert "Nobody has an account yet" in browser.get("/").words
    assert browser.get("/first?token=nonsense").status == 403
    page = browser.get(f"/first?token={site.invitation.token}")
    typed = {"name": "eve", "password": PASSWORD, "again": PASSWORD}
    assert browser.submit(page, "/first", **typed | {"again": "another one"}).status == 422
    assert browser.submit(page, "/first", **typed | {"password": "short", "again": "short"}).status == 422
    assert browser.submit(page, "/first", **typed).words.startswith("Overview")
    assert browser.submit(page, "/first", **typed | {"name": "mallory"}).status == 403
    assert [(user.name, user.role) for user in users.all()] == [("eve", Role.ADMINISTRATOR)]
    assert Site(place.fleet, users).invitation.token is None
    assert oct(users.path.stat().st_mode & 0o777) == "0o600"


# --- what a browser may do


def test_every_answer_binds_the_browser(place):
    browser = place.browser("ada")
    static = next(each for each in browser.get("/").text.split('"') if each.startswith("/static/"))
    for path in ("/", "/login", "/nonsense", static, "/audit/export"):
        headers = browser.get(path, follow=False).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == ("public, max-age=31536000, immutable" if path == static else "no-store")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "192.168.0.7:8470"])
def test_another_name_is_not_answered(place, host):
    browser = place.browser("ada")
    browser.host = host
    answer = browser.get("/")
    assert (answer.status, "Overview" in answer.text) == (421, False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8470", "[::1]:8470", "LOCALHOST:1"])
def test_its_own_names_are_answered(place, host):
    browser = place.browser("ada")
    browser.host = host
    assert browser.get("/").status == 200


def test_a_form_needs_the_token_of_the_session(place):
    browser, other = place.browser("ada"), place.browser("otto")
    action = "/devices/d0/order/action"
    form = browser.get("/devices/d0").form(action) | {"action_id": "3"}
    theirs = other.get("/devices/d0").form(action)["csrf"]
    for token in ("", "nonsense", theirs):
        assert browser.post(action, form | {"csrf": token}).status == 403
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert browser.post(action, form, **headers).status == 403
    assert browser.post(action, form, **{"content-type": "text/plain"}).status == 415
    assert browser.post(action, form | {"lifetime": "0" * (1 << 20)}).status == 413
    assert browser.post("/login", {"name": "ada", "password": PASSWORD}, origin="http://evil.example").status == 403
    assert place.fleet.waiting() == {}
    assert browser.post(action, form).status == 200
    assert place.fleet.waiting() == {0: 1}


def test_what_is_sent_twice_is_done_once(place):
    browser = place.browser("ada")
    action = "/devices/d0/order/action"
    form = browser.get("/devices/d0").form(action) | {"action_id": "3"}
    first, second = (browser.post(action, form, follow=False) for _ in range(2))
    assert (first.status, second.status) == (303, 303)
    assert first.headers["location"] == second.headers["location"]
    assert place.fleet.waiting() == {0: 1}
    again = browser.get("/devices/d0").form(action) | {"action_id": "3"}
    browser.post(action, again)
    assert place.fleet.waiting() == {0: 2}


def test_what_was_refused_may_be_sent_again(place):
    browser = place.browser("ada")
    action = "/devices/d0/order/action"
    page = browser.get("/devices/d0")
    refused = browser.submit(page, action, action_id="nonsense")
    assert refused.status == 422
    assert "is no number" in refused.words
    assert refused.form(action)["action_id"] == "nonsense"
    assert browser.submit(page, action, action_id="3").status == 200
    assert place.fleet.waiting() == {0: 1}


def test_a_browser_that_was_left_open_over_night_loses_nothing(place):
    browser = place.browser("ada")
    page = browser.get("/devices/d0")
    place.now.ahead += 14 * 3600.0
    late = browser.submit(page, "/devices/d0/order/tag", name="room", value=HTML)
    assert late.status == 401
    assert place.fleet.waiting() == {}
    entered = browser.submit(late, "/login", name="ada", password=PASSWORD)
    assert "Nothing has happened yet, and nothing is lost" in entered.words
    done = browser.submit(entered, "/devices/d0/order/tag")
    assert done.status == 200
    place.carry_out()
    assert place.fleet.device(0xD0).tags == {"room": HTML}
    assert browser.submit(late, "/login", name="ada", password=PASSWORD, pending='["/nonsense", []]').path == "/"
    assert browser.submit(late, "/login", name="ada", password=PASSWORD, pending="nonsense").path == "/"


# --- who may do what

POSTS = {
    "/devices/d0/order/action": {"action_id": "3"},
    "/order/confirm": {"verb": "identify", "device": "d0"},
    "/order/post": {"verb": "identify", "device": "d0"},
    "/devices/new/register": {"identity": "d9", "key": key_of(0xD9).public_key.to_pem().decode()},
    "/joins/d0/accept": {"join": "0" * 32},
    "/campaign/plan": {"document": CAMPAIGN},
    "/campaign/begin": {"document": CAMPAIGN},
    "/campaigns/locks/pause": {},
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", ["vera", "ann"])
def test_a_role_that_does_not_allow_it_is_told_so(place, name, path):
    browser = place.browser(name)
    csrf = browser.get("/").form("/logout")["csrf"]
    answer = browser.post(path, POSTS[path] | {"csrf": csrf, "page": "1"})
    assert answer.status in (403, 422)
    assert "may not" in answer.words
    assert place.fleet.waiting() == {}


def test_a_viewer_sees_pages_and_no_forms(place):
    browser = place.browser("vera")
    for path in ("/", "/devices", "/devices/d0", "/joins", "/campaigns", "/refusals", "/audit"):
        page = browser.get(path)
        assert page.status == 200
        assert {form["action"] for form in page.forms} <= {"/logout", "/devices", "/audit"}
    for path in ("/order?device=d0", "/devices/new", "/campaign/new"):
        assert browser.get(path).status == 403


# --- devices


def test_the_table_is_filtered_sorted_and_paged(place):
    browser = place.browser("vera")
    page = browser.get("/devices")
    assert "1 to 3 of 3 devices" in page.words
    assert page.words.index("d0") < page.words.index("d1")
    assert "1 to 1 of 1 device that match, 3 in all" in browser.get("/devices?where=identity%3Dd1").words
    assert "No device matches" in browser.get("/devices?where=identity%3Dd7").words
    wrong = browser.get("/devices?where=colour%3Dred")
    assert (wrong.status, "colour cannot be compared" in wrong.words) == (400, True)
    down = browser.get("/devices?sort=identity&down=1")
    assert down.text.index("r-d2") < down.text.index("r-d0")
    assert "r-d1" in browser.get("/devices?sort=nonsense&from=nonsense").text


def test_a_name_that_is_html_is_text(place):
    browser = place.browser("ada")
    for path in ("/devices", "/devices/d2", "/audit?device=d2", "/devices?where=%3Cscript%3Ealert(1)%3C%2Fscript%3E"):
        page = browser.get(path)
        assert "<b>lab" not in page.text
        assert "<script>alert" not in page.text
    assert HTML in browser.get("/devices/d2").words


def test_every_verb_has_a_form_made_of_its_table(place):
    page = place.browser("ada").get("/devices/d0")
    known = {form["action"].rpartition("/")[2] for form in page.forms if "/order/" in form["action"]}
    assert known == {verb.command for verb in VERBS.values()} - {"register", "decide"}


def test_an_order_is_carried_out_and_says_who_gave_it(place):
    browser = place.browser("otto")
    page = browser.get("/devices/d0")
    browser.submit(page, "/devices/d0/order/action", action_id="3")
    browser.submit(page, "/devices/d0/order/tag", name="site", value="berlin")
    place.carry_out()
    page = browser.get("/devices/d0")
    assert "action_success" in page.words
    assert "site=berlin" in page.words
    assert [each.posted_by for each in place.fleet.audit(0xD0) if each.message == "Action"] == ["otto"]
    assert "valid" in page.words
    assert "site=berlin" in browser.get("/devices?where=tag.site%3Dberlin").words


def test_revoking_asks_for_the_identity(place):
    browser = place.browser("otto")
    page = browser.get("/devices/d1")
    for typed in ("", "d2", "yes"):
        answer = browser.submit(page, "/devices/d1/order/revoke", typed=typed)
        assert (answer.status, "type d1" in answer.words) == (422, True)
    assert place.fleet.waiting() == {}
    browser.submit(page, "/devices/d1/order/revoke", typed="D1")
    place.carry_out()
    assert "no key: removed or revoked" in browser.get("/devices/d1").words


def test_a_selection_is_confirmed_by_number_and_name(place):
    browser = place.browser("otto")
    asked = browser.get("/order?device=d0&device=d2&where=")
    assert "Order for 2 devices" in asked.words
    [fields] = [form["fields"] for form in asked.forms if form["fields"].get("verb") == "action"]
    confirm = browser.post("/order/confirm", fields | {"action_id": "3"})
    assert "Action for 2 devices?" in confirm.words
    assert "d0 d2" in confirm.words
    assert place.fleet.waiting() == {}
    followed = browser.submit(confirm, "/order/post")
    assert "Action for 2 devices" in followed.words
    place.carry_out()
    assert "action_success 2" in browser.get(followed.path).words
    assert browser.submit(confirm, "/order/post").path == followed.path
    assert browser.get("/orders/77").status == 404


def test_an_order_for_all_that_match(place):
    browser = place.browser("otto")
    assert "Order for 3 devices" in browser.get("/order?all=1&where=member%3Dyes").words
    assert "no device is chosen" in browser.get("/order?where=").words
    nobody = browser.get("/order?all=1&where=identity%3Dd7")
    assert "no device is chosen" in nobody.words
    [fields] = [
        form["fields"] for form in browser.get("/order?all=1&where=").forms if form["fields"].get("verb") == "revoke"
    ]
    confirm = browser.post("/order/confirm", fields)
    assert browser.submit(confirm, "/order/post", typed="2").status == 422
    assert browser.submit(confirm, "/order/post", typed="3").status == 200
    assert place.fleet.waiting() == {0: 3}


def test_a_device_is_registered(place):
    browser = place.browser("ada")
    page = browser.get("/devices/new")
    wrong = browser.submit(page, "/devices/new/register", identity="d9", key="nonsense")
    assert (wrong.status, wrong.form("/devices/new/register")["identity"]) == (422, "d9")
    key = key_of(0xD9).public_key
    assert browser.submit(page, "/devices/new/register", identity="d9", key=key.to_pem().decode()).status == 200
    place.carry_out()
    assert key.fingerprint in browser.get("/devices/d9").words


def test_what_there_is_not(place):
    browser = place.browser("ada")
    for path in ("/devices/77", "/devices/nonsense", "/campaigns/none", "/nonsense", "/orders/x"):
        assert browser.get(path).status == 404
    csrf = browser.get("/").form("/logout")["csrf"]
    assert browser.post("/devices/d0/order/nonsense", {"csrf": csrf}).status == 404
    assert browser.post("/campaigns/none/pause", {"csrf": csrf}).status == 404


# --- joins


def test_a_join_is_compared_and_accepted(place):
    shown = []
    device = place.world.add(0xD5, join="human")
    device.on_join_value(shown.append)
    device.start(threads=False)
    place.world.settle()
    value = next(each for each in shown if each is not None)
    browser = place.browser("otto")
    page = browser.get("/joins")
    assert value.words in page.words
    assert value.groups in page.words
    assert "<svg" in page.text
    assert "d5 wants to join" in browser.get("/").words
    assert value.words not in place.browser("vera").get("/joins").words
    stale = browser.submit(page, "/joins/d5/accept", join="0" * 32)
    assert stale.status == 200
    place.carry_out()
    assert not device.joined
    browser.submit(browser.get("/joins"), "/joins/d5/accept")
    place.carry_out()
    assert device.joined
    assert "Nobody waits to join" in browser.get("/joins").words
    assert "otto" in {each.posted_by for each in place.fleet.audit(0xD5)}


# --- campaigns


def campaigns(place):
    store = campaigns_at(place.folder / "server.db", SERVER)
    return closing(Campaigns(place.fleet, store, lambda: place.world.clock.now))


def go_on(place, runner, times=8):
    for _ in range(times):
        runner.step()
        place.carry_out()


def document(place):
    (place.folder / "firmware.bin").write_bytes(FIRMWARE)
    return CAMPAIGN.format(digest=file_digest(place.folder / "firmware.bin"))


def test_a_campaign_is_made_approved_paused_resumed_and_finished(place):
    text = document(place)
    otto, ann = place.browser("otto"), place.browser("ann")
    new = otto.get("/campaign/new")
    planned = otto.submit(new, "/campaign/plan", document=text)
    assert "locks would take in" in planned.words
    assert "when 1 person has approved it" in planned.words
    begun = otto.submit(planned, "/campaign/begin", unfetched="1")
    assert begun.path == "/campaigns/locks"
    assert "awaiting approval" in begun.words
    assert "somebody else must approve it" in begun.words
    csrf = {"csrf": otto.get("/").form("/logout")["csrf"], "page": "x"}
    assert "may not approve" in otto.post("/campaigns/locks/approve", csrf).words
    with campaigns(place) as runner:
        approved = ann.submit(ann.get("/campaigns/locks"), "/campaigns/locks/approve")
        assert "You have approved it" in approved.words
        runner.step()
        assert runner.view("locks").campaign.state is State.RUNNING
        paused = otto.submit(otto.get("/campaigns/locks"), "/campaigns/locks/pause")
        assert "paused by otto" in paused.words
        go_on(place, runner)
        assert runner.view("locks").counts() == {At.HEALTHY: 1, At.WAITING: 2}  # what was ordered goes on
        otto.submit(otto.get("/campaigns/locks"), "/campaigns/locks/resume")
        go_on(place, runner)
        assert runner.view("locks").campaign.state is State.FINISHED
    page = otto.get("/campaigns/locks")
    assert "3 healthy" in page.words or "healthy 3" in page.words
    assert "Approved by ann; 1 needed" in page.words
    assert "have succeeded" in page.text
    assert otto.get("/campaigns/locks?state=healthy&from=nonsense").status == 200
    assert "locks" in otto.get("/campaigns").words


def test_a_file_that_makes_no_sense_is_named_with_line_and_column(place):
    otto = place.browser("otto")
    new = otto.get("/campaign/new")
    for text, said in {
        document(place).replace("version = 42", "verzion = 42"): "line 5, column 1: [firmware] unknown key 'verzion'",
        'name = "x"\n[firm ware]\n': "line 2, column 7",
        document(place).replace('digest = "', 'file = "../secret"\nx = "'): "column 1: file: the console knows no",
        document(place).replace('share = "100%"', 'where = "identity=d7"'): "would be for nobody",
    }.items():
        answer = otto.submit(new, "/campaign/plan", document=text)
        assert answer.status == 422
        assert said in answer.words
        assert answer.form("/campaign/plan")["document"].strip() == text.strip()
    assert place.fleet.campaigns.all() == []


def test_files_are_named_within_the_folder_alone(place):
    (place.folder / "firmware").mkdir()
    (place.folder / "firmware" / "new.bin").write_bytes(FIRMWARE)
    site = Site(place.fleet, place.users, firmware=place.folder / "firmware")
    browser = Browser(application(site))
    browser.log_in("otto", PASSWORD)
    new = browser.get("/campaign/new")
    for name, said in {
        "new.bin": "locks would take in",
        "../server.db": "without a path",
        "/etc/passwd": "without a path",
    }.items():
        text = CAMPAIGN.replace('digest = "{digest}"', f'file = "{name}"')
        assert said in browser.submit(new, "/campaign/plan", document=text).words


def test_firmware_that_cannot_be_had_begins_nothing(place):
    otto = place.browser("otto")
    text = document(place).replace(URL, "http://127.0.0.1:1/firmware.bin")
    planned = otto.submit(otto.get("/campaign/new"), "/campaign/plan", document=text)
    answer = otto.submit(planned, "/campaign/begin")
    assert answer.status == 422
    assert place.fleet.campaigns.all() == []


# --- refusals, audit, and what changes meanwhile


def test_a_tampered_image_is_shown_as_refused_with_its_reason(place):
    otto = place.browser("otto")
    place.world.fetcher.contents = {URL: b"something else"}
    otto.submit(otto.get("/devices/d0"), "/devices/d0/order/update", url=URL, digest="ab" * 32)
    place.carry_out()
    assert place.fleet.device(0xD0).update.state == "FAILED"
    for path in ("/devices/d0", "/devices", "/refusals"):
        assert "the content has the digest" in otto.get(path).words, path
    assert "UPDATE_FAIL_DIGEST" in otto.get("/refusals").words
    assert "UPDATE_FAIL_DIGEST" in otto.get("/").words


def test_the_audit_is_searched_verified_and_taken_away(place):
    browser = place.browser("vera")
    page = browser.get("/audit")
    assert "valid" in page.words
    assert "invalid" not in page.words
    assert "Nothing was exchanged that matches" in browser.get("/audit?device=77").words
    assert browser.get("/audit?since=2001-01-01&until=2001-01-02").status == 200
    for wrong in ("since=yesterday", "until=99:99", "device=nonsense"):
        assert browser.get(f"/audit?{wrong}").status == 400
        assert browser.get(f"/audit/export?{wrong}").status == 400
    exported = list(read_export(browser.get("/audit/export?device=d0").text.splitlines()))
    assert {record.peer for record, _, _ in exported} == {0xD0}
    assert {verdict for _, verdict, _ in exported} == {Verdict.VALID, Verdict.ABSENT}


def test_a_page_is_told_what_has_become_of_it(place):
    streams = Streams()
    app = application(place.site, streams)
    browser = Browser(app)
    browser.log_in("otto", PASSWORD)
    page = browser.get("/devices/d0")
    token = page.form("/devices/d0/order/tag")["page"]
    place.fleet.tag(0xD0, "site", "berlin")
    place.carry_out()
    told = browser.get(f"/live?at=/devices/d0&page={token}", until="data:").text
    part = json.loads(told.partition("data: ")[2].splitlines()[0])
    assert "site=berlin" in part
    assert f'name="page" value="{token}"' in part
    assert "<html" not in part
    streams.closing.set()
    assert "data:" not in browser.get(f"/live?at=/devices/d0&page={token}").text
    assert browser.get("/live?at=/nonsense").status == 204


def test_a_stream_ends_with_its_session(place):
    browser = place.browser("otto")
    place.users.remove("otto")
    assert browser.get("/live?at=/devices").status == 204


def test_a_hundred_pages_of_devices(tmp_path, users_file):
    """Rows are read for themselves, and what is sorted or filtered is remembered."""
    store = SqliteStore(tmp_path / "server.db")
    store.open(SERVER)
    changes = Changes()
    key = key_of(1).public_key.to_pem()
    for identity in range(0x1001, 0x1001 + 5000):
        changes.keys.append(KeyRecord(identity, key, None))
        changes.facts.append(Fact(identity, f"{TAG}number", str(identity)))
    store.commit(changes)
    store.close()
    with Fleet(tmp_path / "server.db", SERVER) as fleet:
        users = Users(users_file)
        browser = Browser(application(Site(fleet, users)))
        browser.log_in("vera", PASSWORD)
        page = browser.get("/devices?from=19c5")
        assert "2,501 to 2,550 of 5,000 devices" in page.words
        assert "2,551 to 2,600" in browser.get("/devices?from=19f7").words
        found = browser.get("/devices?where=tag.number%3D5711&sort=last_contact")
        assert "1 to 1 of 1 device that match, 5,000 in all" in found.words

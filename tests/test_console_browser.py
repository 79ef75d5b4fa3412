"""The console in a real Chromium, over a real broker, server, firmware host and devices.

With SRUP_SCREENSHOTS=1 the pictures in docs/images/ are made anew.
"""

import hashlib
import os
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from srup import Device, FetchPolicy, Fleet
from srup.console import Role, Users
from srup.demo.host import FirmwareHost
from srup.transport import LocalBroker

from .command import PATIENCE, Command
from .fleet import key_of, wait_until
from .programs import need
from .server_process import SERVER, ServerProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PASSWORD = "correct horse battery"
PEOPLE = {"otto": Role.OPERATOR, "ann": Role.APPROVER, "vera": Role.VIEWER}
IMAGE = bytes(range(256)) * 64
DIGEST = hashlib.sha256(IMAGE).hexdigest()
HTML = "<b>lab</b> & 'co'"
DEVICES = range(0xA0, 0xB0)
NAMES = ["front door", "back door", "gate", "cellar", HTML]

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def chromium():
    path = need("chromium")
    with sync_playwright() as playwright:
        # As root, which is what containers run as, its sandbox cannot be had.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Broker, server, firmware host, console; users have accounts, devices are registered."""
    need("mosquitto")
    folder = tmp_path_factory.mktemp("site")
    (folder / "devices").mkdir()
    key_of(SERVER).save(folder / "server.pem")
    for identity in DEVICES:
        key_of(identity).public_key.save(folder / "devices" / f"{identity:x}.pem")
    users = Users(folder / "users.json")
    for name, role in PEOPLE.items():
        users.add(name, role, PASSWORD)
    with ExitStack() as stack:
        broker = stack.enter_context(LocalBroker("mosquitto"))
        host = stack.enter_context(FirmwareHost(IMAGE, folder))
        options = ("--store", folder / "server.db", "--admission", "human", "--moderation", "orders")
        server = stack.enter_context(ServerProcess(folder, broker.url, *options))
        server.heard("server 5e")
        fleet = stack.enter_context(Fleet(folder / "server.db", SERVER))
        store = ("--store", folder / "server.db", "--identity", f"{SERVER:x}", "--users", folder / "users.json")
        console = stack.enter_context(Command("console", *store, "--port", "0", "--fetch-ca", host.certificate))
        line = console.heard("console of server 5e at")
        yield SimpleNamespace(
            url=line.split()[-1], fleet=fleet, host=host, broker=broker.url, folder=folder, stack=stack, console=console
        )
        assert console.end() == 0
        assert "Traceback" not in console.text


@contextmanager
def device(site, identity, *, joined=True, activate=lambda path: None, name=""):
    """A device that runs; a member unless it is to wait for somebody's word."""
    made = Device(
        identity,
        key_of(identity),
        server=SERVER,
        server_key=key_of(SERVER).public_key,
        broker=site.broker,
        firmware=site.folder / f"firmware-{identity:x}",
        fetch=FetchPolicy(ca_file=site.host.certificate),
        description=name or f"device {identity:x}",
        join="human",
    )
    made.shown = []
    made.on_join_value(lambda value: made.shown.append(value) if value is not None else None)
    made.on_activate(activate)
    made.on_action(3)(lambda sender: None)
    with made:
        if joined:
            wait_until(lambda: waiting(site, identity), "the join", PATIENCE)
            site.fleet.decide_join(identity, "accept", waiting(site, identity))
            made.wait_joined(PATIENCE)
            site.fleet.identify(identity).result(PATIENCE)
        yield made


def waiting(site, identity):
    return next((join for join in site.fleet.joins() if join.device == identity), None)


@pytest.fixture
def open_page(chromium, site):
    """Open a page as a user; whatever a browser complains of is a fault."""
    with ExitStack() as stack:
        complaints = []

        def open_page(name, path="/", size=WIDE, scheme="light"):
            context = chromium.new_context(viewport=size, color_scheme=scheme, base_url=site.url)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE * 1000)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
            page.goto(path)
            page.get_by_label("Name").fill(name)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_selector(".top")
            return page

        yield open_page
    assert complaints == []


def sees(page, selector, text):
    expect(page.locator(selector)).to_contain_text(text, timeout=PATIENCE * 1000)


def keep(page, name):
    """Keep a picture for the documents, when that is asked for."""
    if os.environ.get("SRUP_SCREENSHOTS"):
        IMAGES.mkdir(exist_ok=True)
        page.screenshot(path=IMAGES / f"console-{name}.png")


def test_a_device_joins_by_comparing_words(site, open_page):
    page = open_page("otto", "/joins")
    with device(site, 0xA0, joined=False, name="gate") as made:
        sees(page, "main", "Is this what a0 shows?")  # without being loaded again
        words = page.locator("ol.compare").first.locator("li").all_inner_texts()
        assert " ".join(words) == made.shown[-1].words
        assert page.locator(".qr svg").bounding_box()["width"] > 250
        keep(page, "joins")
        page.get_by_role("button", name="Accept a0").click()
        sees(page, ".notice:not(#trouble)", "a0 is accepted")
        made.wait_joined(PATIENCE)
        sees(page, "main", "Nobody waits to join")


def test_a_campaign_is_made_approved_paused_resumed_and_finished(site, open_page):
    may_end = threading.Event()
    with ExitStack() as stack:
        stack.callback(may_end.set)
        for identity in (0xA1, 0xA2):
            stack.enter_context(device(site, identity, activate=lambda path: may_end.wait(PATIENCE)))
            site.fleet.tag(identity, "site", "berlin").result(PATIENCE)
        otto, ann = open_page("otto", "/campaign/new"), open_page("ann")
        text = f'''name = "locks-42"
[firmware]
digest = "{DIGEST}"
url = "{site.host.url(0)}"
version = 42
[target]
where = "tag.site=berlin"
[[group]]
size = 1
[[group]]
size = "100%"
[approval]
people = 1
'''
        (site.folder / "locks.toml").write_text(text)
        otto.get_by_label("The campaign file").fill(text.replace("version", "verzion"))
        otto.get_by_role("button", name="See what it would do").click()
        sees(otto, ".notice:not(#trouble)", "line 5, column 1: [firmware] unknown key 'verzion'")
        otto.get_by_label("or choose a file").set_input_files(site.folder / "locks.toml")
        expect(otto.get_by_label("The campaign file")).to_have_value(text)
        otto.get_by_role("button", name="See what it would do").click()
        sees(otto, ".plan", "locks-42 would take in 2 devices")
        otto.get_by_role("button", name="Begin locks-42").click()
        sees(otto, "main", "somebody else must approve it")
        ann.goto("/campaigns/locks-42")
        ann.get_by_role("button", name="Approve").click()
        sees(ann, ".notice:not(#trouble)", "You have approved it: 1 of 1")
        sees(otto, "main .head .state", "running")
        sees(otto, ".groups", "1 ready")
        otto.get_by_role("button", name="Pause").click()
        sees(otto, "main", "paused by otto")
        may_end.set()
        sees(otto, ".groups", "1 healthy")
        sees(otto, ".groups", "1 waiting")
        otto.get_by_role("button", name="Resume").click()
        sees(otto, "main .head .state", "finished")
        sees(otto, ".groups tbody tr:nth-child(2)", "1 healthy")
        assert otto.locator(".plot").get_attribute("aria-label").startswith("2 devices have succeeded and 0 failed")
        keep(otto, "campaign")


def test_a_tampered_image_is_shown_as_refused_with_its_reason(site, open_page):
    site.host.tamper_for(0xA3)
    with device(site, 0xA3):
        page = open_page("otto", "/devices/a3")
        page.locator("#v-update summary").click()
        page.get_by_label("URL").fill(site.host.url(0xA3))
        (site.folder / "firmware.bin").write_bytes(IMAGE)
        page.get_by_label("or choose the file").set_input_files(site.folder / "firmware.bin")
        expect(page.locator("#update-digest")).to_have_value(DIGEST)
        page.get_by_role("button", name="Update a3").click()
        sees(page, ".notice:not(#trouble)", "Update was ordered")
        sees(page, "section:has(#h-facts)", "the content has the digest")
        sees(page, "section:has(#h-exchanges)", "UPDATE_FAIL_DIGEST")
        page.goto("/refusals")
        sees(page, "#f-a3", "the content has the digest")
        sees(page, "main", "UPDATE_FAIL_DIGEST")


def test_what_a_role_does_not_allow_is_refused(site, open_page):
    page = open_page("vera", "/devices/a4")
    sees(page, "main", "As viewer you can look, and not give orders")
    assert page.locator("main form").count() == 0
    page.goto("/campaign/new")
    sees(page, "main", "vera is a viewer and may not make and steer campaigns")
    csrf = page.locator("[name=csrf]").first.input_value()
    sent = "([path, csrf]) => fetch(path, {method: 'POST', body: new URLSearchParams({csrf, action_id: '3'})})"
    status = page.evaluate(f"async (given) => (await ({sent})(given)).status", ["/devices/a4/order/action", csrf])
    assert status == 403
    operator = open_page("otto")
    status = operator.evaluate(f"async (given) => (await ({sent})(given)).status", ["/devices/a4/order/action", csrf])
    assert status == 403  # that is another session's token


def test_a_double_click_orders_once(site, open_page):
    with device(site, 0xA5) as made:
        done = []
        made.on_action(4)(lambda sender: done.append(sender))
        page = open_page("otto", "/devices/a5")
        page.locator("#v-action summary").click()
        page.locator("#action-action_id").fill("4")
        page.get_by_role("button", name="Action a5").dblclick()
        sees(page, ".notice:not(#trouble)", "Action was ordered")
        sees(page, "section:has(#h-orders)", "action_success")
        assert page.locator("section:has(#h-orders) tbody tr", has_text="Action").count() == 1
        assert done == [SERVER]


def test_a_name_that_is_html_is_text(site, open_page):
    with device(site, 0xA6, name=HTML):
        page = open_page("vera", "/devices")
        sees(page, "#r-a6", HTML)
        assert page.locator("#r-a6 b").count() == 0
        page.goto("/devices/a6")
        sees(page, "h1", HTML)


def test_it_is_used_by_keyboard(site, open_page):
    page = open_page("vera")
    page.goto("/devices")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("identity=a1")
    page.keyboard.press("Enter")
    sees(page, ".under", "1 to 1 of 1 device that match")
    assert page.url.endswith("/devices?where=identity%3Da1")


def test_what_is_typed_stays_while_the_page_changes(site, open_page):
    with device(site, 0xA7):
        page = open_page("otto", "/devices/a7")
        page.locator("#v-tag summary").click()
        page.locator("#tag-name").fill("room")
        before = int(page.evaluate("document.body.dataset.updates || 0"))
        site.fleet.tag(0xA7, "floor", "2").result(PATIENCE)
        sees(page, "section:has(#h-facts)", "floor=2")
        assert int(page.evaluate("document.body.dataset.updates")) > before
        assert page.locator("#tag-name").input_value() == "room"
        assert page.locator("#v-tag").get_attribute("open") is not None


PAGES = {
    "overview": "/",
    "devices": "/devices",
    "one device": "/devices/a8",
    "register": "/devices/new",
    "order": "/order?device=a8&device=a9&verb=update",
    "joins": "/joins",
    "campaigns": "/campaigns",
    "new campaign": "/campaign/new",
    "refusals": "/refusals",
    "audit": "/audit",
    "missing": "/devices/77",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_on_any_page(site, open_page, size, scheme):
    with ExitStack() as stack:
        stack.enter_context(device(site, 0xA8, name=HTML))
        stack.enter_context(device(site, 0xA9, joined=False))
        page = open_page("otto", size=size, scheme=scheme)
        wait_until(lambda: waiting(site, 0xA9), "the join", PATIENCE)
        axe, found = Axe(), {}
        for name, path in PAGES.items():
            page.goto(path)
            found[name] = [(each["id"], each["help"]) for each in axe.run(page).response["violations"]]
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), name
        page.get_by_role("button", name="Log out").click()
        page.wait_for_selector("main.door")
        found["log-in"] = [(each["id"], each["help"]) for each in axe.run(page).response["violations"]]
        assert not any(found.values()), found


def test_pictures_for_the_documents(site, open_page):
    """Only where they are asked for; with several devices, as an operator has them."""
    if not os.environ.get("SRUP_SCREENSHOTS"):
        return
    with ExitStack() as stack:
        for number, identity in enumerate(range(0xAA, 0xAE)):
            stack.enter_context(device(site, identity, name=NAMES[number]))
            site.fleet.tag(identity, "site", "berlin" if number % 2 else "bonn").result(PATIENCE)
        for name, path in {"overview": "/", "devices": "/devices"}.items():
            keep(open_page("otto", path), name)
        keep(open_page("otto", "/", NARROW, "dark"), "phone")
    for path in IMAGES.glob("console-*.png"):
        assert path.stat().st_size < 150_000

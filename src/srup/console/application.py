"""The console as a starlette application: which pages and actions there are, and who gets to them.

A request finds its page or action in a table; who asks must be logged in and allowed to, a form must have the token of
the session, and what it leads to happens once. Pages and actions themselves run on threads, for they ask the store.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from secrets import token_urlsafe
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import SrupError, StoreError
from ..extras import missing_named
from .guard import FormError, Guard, is_own_form, read_form
from .live import Streams
from .pages import ACTIONS, PAGES
from .pages.audit import export
from .rendering import render, render_plain, static_files
from .sessions import Session
from .site import Site
from .users import Power
from .visit import NOTHING, Action, Missing, Page, Question, Shown, Values, Visit

with missing_named():
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
    from starlette.routing import Match, Route

__all__ = ["application"]

log: Final = logging.getLogger("srup.console")

_OURS: Final = ("csrf", "page")  # fields that every form has
_NOTICE: Final = "notice"
_LONGEST_PENDING: Final = 1 << 18

Endpoint = Callable[[Request], Awaitable[Response]]


def application(site: Site, streams: Streams | None = None) -> Any:
    """Return the application of a console; ``streams`` are closed by whoever ends it."""
    return Guard(_Console(site, streams or Streams()).app, site.names)


class _Console:
    def __init__(self, site: Site, streams: Streams) -> None:
        self.site = site
        self.streams = streams
        self.pages = [(Route(page.path, _nothing, methods=["GET"]), page) for page in PAGES]
        self.app = Starlette(
            routes=[
                Route("/static/{name}", _static, methods=["GET"]),
                Route("/login", self.log_in, methods=["GET", "POST"]),
                Route("/first", self.first, methods=["GET", "POST"]),
                Route("/logout", self.log_out, methods=["POST"]),
                Route("/live", self.live, methods=["GET"]),
                Route("/audit/export", self.export, methods=["GET"]),
                *(Route(page.path, self._page(page), methods=["GET"]) for page in PAGES),
                *(Route(action.path, self._action(action), methods=["GET", "POST"]) for action in ACTIONS),
            ],
            exception_handlers={404: self._not_found, 405: self._not_found, Exception: _broken},
        )

    # Pages and actions.

    def _page(self, page: Page) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return await self._strangers(request)
            visit = self._visit(request, session)
            notice = visit.site.notices.take(request.cookies.get(_NOTICE, ""), session.id)
            status, text = await run_in_threadpool(_show, page, visit, notice)
            response = HTMLResponse(text, status)
            if notice:
                response.delete_cookie(_NOTICE, path="/", secure=self.site.secure, httponly=True, samesite="strict")
            return self._renewed(response, session)

        return endpoint

    def _action(self, action: Action | Question) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            if request.method == "GET":  # somebody came back to where a form had led
                return RedirectResponse("/", 303)
            try:
                form = await read_form(request)
            except FormError as error:
                return self._error(self._session(request), error.status, str(error))
            session = self._session(request)
            if not is_own_form(request):
                return self._error(session, 403, "The form does not come from a page of this console.")
            if session is None:
                return self._ask(401, pending=_pending(request.url.path, form))
            if not session.accepts(form.get("csrf")):
                return self._error(
                    session, 403, "The form has no valid token. Load its page again, and send it from there."
                )
            visit = self._visit(request, session, form)
            response = await run_in_threadpool(self._act, action, visit)
            return self._renewed(response, session)

        return endpoint

    def _act(self, action: Action | Question, visit: Visit) -> Response:
        if not visit.user.may(action.power):
            return self._error(visit.session, 403, _refusal(visit, action.power))
        try:
            if isinstance(action, Question):
                asked = action.ask(visit)
                return HTMLResponse(render(visit, asked._replace(live=False)), asked.status)
            key = f"{visit.session.id} {visit.address} {visit.token}"
            outcome = self.site.once.do(key, lambda: action.do(visit))
        except (SrupError, ValueError) as error:
            return HTMLResponse(*_again(action, visit, str(error)))
        except Missing as error:
            return self._error(visit.session, 404, str(error))
        self.site.census.outdated()
        response = RedirectResponse(outcome.location, 303)
        if outcome.notice:
            token = self.site.notices.leave(visit.session.id, outcome.notice)
            self._set(response, _NOTICE, token, 60)
        return response

    async def live(self, request: Request) -> Response:
        """Tell a browser whenever the page that it shows has changed."""
        session = self._session(request)
        if session is None:
            return Response(status_code=204)  # the browser does not ask again
        at = urlsplit(request.query_params.get("at", "/"))
        found = self._find(at.path)
        if found is None:
            return Response(status_code=204)
        page, path = found
        address = f"{at.path}?{at.query}" if at.query else at.path
        query = _values(Request({"type": "http", "query_string": at.query.encode(), "headers": []}))
        token = request.query_params.get("page", "")[:64]

        def part() -> str | None:
            now = self.site.clock()
            known = self.site.sessions.read(request.cookies.get(self.site.cookie, ""), now)
            if known is None or not known.user.may(page.power):
                return None
            visit = Visit(self.site, known, now, path, query, token=token, address=address)
            return _show(page, visit, "", part=True)[1]

        return self.streams.open(session.id, part, request.is_disconnected)

    async def export(self, request: Request) -> Response:
        """Return what a search in the audit finds as a file."""
        session = self._session(request)
        if session is None:
            return await self._strangers(request)
        if not session.user.may(Power.LOOK):
            return self._error(session, 403, "Not allowed.")
        try:
            lines = await run_in_threadpool(export, self._visit(request, session))
        except (ValueError, SrupError) as error:
            return self._error(session, 400, str(error))
        headers = {"content-disposition": 'attachment; filename="audit.jsonl"'}
        return StreamingResponse(lines, 200, headers, "application/jsonl")

    def _find(self, path: str) -> tuple[Page, dict[str, str]] | None:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        for route, page in self.pages:
            match, child = route.matches(scope)
            if match is Match.FULL:
                return page, {name: str(value) for name, value in child["path_params"].items()}
        return None

    # Coming and going.

    async def log_in(self, request: Request) -> Response:
        """Show the log-in, or take a name and a password."""
        if request.method == "GET":
            if self._session(request) is not None:
                return RedirectResponse(_local(request.query_params.get("next", "/")), 303)
            return self._ask(next_=_local(request.query_params.get("next", "/")))
        try:
            form = await read_form(request)
        except FormError as error:
            return self._ask(error.status, str(error))
        if not is_own_form(request):
            return self._ask(403, "The form does not come from a page of this console.")
        pending, next_ = form.raw("pending"), _local(form.get("next", "/"))
        name = form.get("name")[:64]
        now = self.site.clock()
        each = f"{name}@{request.client.host if request.client else ''}"
        if not (self.site.attempts.begin(each, now) and self.site.all_attempts.begin("", now)):
            log.warning("too many attempts to log in as %a", name)
            said = "Too many attempts. Wait half a minute before the next one."
            return self._ask(429, said, next_=next_, pending=pending, name=name)
        user = await run_in_threadpool(self.site.users.check, name, form.raw("password"))
        if user is None:
            log.warning("log-in as %a failed", name)
            said = "This name and this password do not belong together."
            return self._ask(401, said, next_=next_, pending=pending, name=name)
        self.site.attempts.succeeded(each)
        self.site.all_attempts.succeeded("")
        log.info("%s has logged in", user.name)
        session = self.site.sessions.begin(user, now)
        return self._entered(self._resumed(request, session, pending) or RedirectResponse(next_, 303), session)

    async def first(self, request: Request) -> Response:
        """Let the owner of the one-time link become the first administrator."""
        invitation = self.site.invitation
        token = request.query_params.get("token", "")
        form = NOTHING
        try:
            if request.method == "POST":
                form = await read_form(request)
                token = form.get("token")
            if not invitation.matches(token) or (form and not is_own_form(request)):
                return self._ask(
                    403, "This link was used, or is not the newest one. Start the console again for another."
                )
            if request.method == "GET":
                return _plain("first.html", token=token, wrong="", name="")
            if form.raw("password") != form.raw("again"):
                raise ValueError("the two passwords differ")
            user = await run_in_threadpool(invitation.accept, form.get("name"), form.raw("password"))
        except (ValueError, OSError) as error:
            return _plain("first.html", 422, token=token, wrong=str(error), name=form.get("name"))
        log.info("%s is the first administrator", user.name)
        session = self.site.sessions.begin(user, self.site.clock())
        return self._entered(RedirectResponse("/", 303), session)

    async def log_out(self, request: Request) -> Response:
        """End the session."""
        session = self._session(request)
        form = await read_form(request)
        if session is not None and is_own_form(request) and session.accepts(form.get("csrf")):
            self.site.sessions.end(session)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self.site.cookie, path="/", secure=self.site.secure, httponly=True, samesite="strict")
        return response

    def _session(self, request: Request) -> Session | None:
        return self.site.sessions.read(request.cookies.get(self.site.cookie, ""), self.site.clock())

    async def _strangers(self, request: Request) -> Response:
        address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return self._ask(401 if address != "/" else 200, next_=address)

    def _ask(self, status: int = 200, wrong: str = "", next_: str = "/", pending: str = "", name: str = "") -> Response:
        content = {"wrong": wrong, "next": next_, "pending": pending, "name": name}
        return _plain("login.html", status, **content, invited=self.site.invitation.token is not None)

    def _resumed(self, request: Request, session: Session, pending: str) -> Response | None:
        """Return a page with the form that was sent when its session was over already; None without one."""
        try:
            path, pairs = json.loads(pending[:_LONGEST_PENDING])
            form = Values([(str(name), str(text)) for name, text in pairs])
        except (ValueError, TypeError):
            return None
        if not any(path == action.path or _fits(action, path) for action in ACTIONS):
            return None
        visit = self._visit(request, session)
        content = {"action": path, "fields": [each for each in form.pairs if each[0] not in _OURS]}
        return HTMLResponse(render(visit, Shown("resume.html", content, live=False)))

    def _entered(self, response: Response, session: Session) -> Response:
        self._set(response, self.site.cookie, self.site.sessions.cookie(session), None)
        return response

    def _renewed(self, response: Response, session: Session) -> Response:
        newer = self.site.sessions.renewed(session, self.site.clock())
        return response if newer is None else self._entered(response, newer)

    def _set(self, response: Response, name: str, value: str, seconds: int | None) -> None:
        secure = self.site.secure
        response.set_cookie(name, value, seconds, path="/", secure=secure, httponly=True, samesite="strict")

    # The rest.

    def _visit(self, request: Request, session: Session, form: Values = NOTHING) -> Visit:
        return Visit(
            site=self.site,
            session=session,
            now=self.site.clock(),
            path={name: str(value) for name, value in request.path_params.items()},
            query=_values(request),
            form=form,
            token=form.get("page")[:64] or token_urlsafe(12),
            address=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        )

    async def _not_found(self, request: Request, _: Exception) -> Response:
        return self._error(self._session(request), 404, "There is no such page.")

    def _error(self, session: Session | None, status: int, text: str) -> Response:
        if session is None:
            return self._ask(status, text)
        visit = Visit(self.site, session, self.site.clock(), {}, token=token_urlsafe(12))
        return HTMLResponse(render(visit, Shown("error.html", {"text": text, "status": status}, live=False)), status)


def _show(page: Page, visit: Visit, notice: str, *, part: bool = False) -> tuple[int, str]:
    """Return the status and the text of a page, or of what stands in its place."""
    status, text = 200, ""
    if not visit.user.may(page.power):
        status, text = 403, _refusal(visit, page.power)
    else:
        try:
            shown = page.show(visit)
            return shown.status, render(visit, shown, notice, part=part)
        except Missing as error:
            status, text = 404, str(error)
        except StoreError as error:
            status, text = 503, f"The store does not answer: {error}"
        except (SrupError, ValueError) as error:
            status, text = 400, str(error)
    return status, render(visit, Shown("error.html", {"text": text, "status": status}, status == 503), part=part)


def _again(action: Action | Question, visit: Visit, wrong: str) -> tuple[str, int]:
    """Return the page of a form that makes no sense, with what was typed, and its status."""
    asked = Visit(
        visit.site, visit.session, visit.now, visit.path, visit.query, token=visit.token, typed=visit.form, wrong=wrong
    )
    try:
        shown = action.page(asked)
    except (SrupError, ValueError, Missing):
        shown = Shown("error.html", {"text": wrong, "status": 422})
    return render(asked, shown._replace(live=False)), 422


def _refusal(visit: Visit, power: Power) -> str:
    return f"{visit.user.name} is {_a(visit.user.role)} and may not {power}. An administrator can change that."


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeo" else f"a {noun}"


def _fits(action: Action | Question, path: object) -> bool:
    scope = {"type": "http", "method": "POST", "path": str(path), "root_path": "", "headers": []}
    return Route(action.path, _nothing, methods=["POST"]).matches(scope)[0] is Match.FULL


def _pending(path: str, form: Values) -> str:
    """Return a form that came too late as text, to be sent again after the log-in."""
    told = json.dumps([path, [each for each in form.pairs if each[0] not in _OURS]])
    return told if len(told) <= _LONGEST_PENDING else ""


def _local(address: str) -> str:
    """Return an address of ours to go on to; the first page for any other."""
    parts = urlsplit(address)
    good = (
        address.startswith("/") and not parts.netloc and not address.startswith(("//", "/\\")) and address.isprintable()
    )
    return address if good else "/"


def _values(request: Request) -> Values:
    return Values(list(request.query_params.multi_items())[:2000])


def _plain(template: str, status: int = 200, **content: Any) -> Response:
    return HTMLResponse(render_plain(template, **content), status)


async def _nothing(_: Request) -> Response:
    raise NotImplementedError


async def _static(request: Request) -> Response:
    found = static_files().get(request.path_params["name"])
    if found is None:
        return Response(status_code=404)
    return Response(found.content, 200, {"cache-control": "public, max-age=31536000, immutable"}, found.type)


async def _broken(_: Request, error: Exception) -> Response:
    log.error("a page could not be made", exc_info=error)
    return _plain("broken.html", 500)

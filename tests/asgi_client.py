"""A browser without a window: asks an ASGI application, keeps cookies, follows redirects, and fills in forms."""

import asyncio
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit


class Forms(HTMLParser):
    """The forms of a page: what each sends unless something else is typed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[dict[str, Any]] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self._area: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "form":
            self.forms.append({"action": told.get("action", ""), "fields": {}})
        elif self.forms and (name := told.get("name")):
            if tag == "textarea":
                self._area = name
                self.forms[-1]["fields"][name] = ""
            elif tag == "input" and told.get("type") != "checkbox":
                self.forms[-1]["fields"][name] = told.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._area is not None:
            self.forms[-1]["fields"][self._area] += data


class Answer:
    """What came back; ``text`` is the page, ``words`` what a reader sees of it."""

    def __init__(self, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
        self.path, self.status, self.headers, self.body = path, status, headers, body
        self.text = body.decode()
        parsed = Forms(self.text if headers.get("content-type", "").startswith("text/html") else "")
        self.forms, self.tags = parsed.forms, parsed.tags
        self.words = " ".join(" ".join(parsed.words).split())

    def form(self, action: str) -> dict[str, str]:
        """What the form that is sent there has in its fields."""
        [fields] = [form["fields"] for form in self.forms if form["action"] == action]
        return dict(fields)


class Browser:
    """A browser of its own; ``host`` is what it thinks that it asks."""

    def __init__(self, app: Any, host: str = "localhost:8470") -> None:
        self.app, self.host = app, host
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        self.headers: dict[str, str] = {}

    def get(self, path: str, *, follow: bool = True, until: str | None = None) -> Answer:
        """Ask for a page; it goes away ``until`` that has come, which is for what does not end by itself."""
        return self._ask("GET", path, b"", {}, follow, until)

    def post(self, path: str, fields: Any, *, follow: bool = True, **headers: str) -> Answer:
        told = {"content-type": "application/x-www-form-urlencoded", "origin": f"http://{self.host}"} | headers
        return self._ask("POST", path, urlencode(fields, doseq=True).encode(), told, follow)

    def submit(self, page: Answer, action: str, **typed: Any) -> Answer:
        """Send a form of a page with this typed into it."""
        return self.post(action, page.form(action) | typed)

    def log_in(self, name: str, password: str) -> Answer:
        return self.submit(self.get("/login"), "/login", name=name, password=password)

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str], follow: bool, until: str | None = None
    ) -> Answer:
        answer = asyncio.run(self._exchange(method, path, body, self.headers | headers, until))
        if follow and answer.status == 303:
            return self.get(urljoin(path, answer.headers["location"]))
        return answer

    async def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], until: str | None
    ) -> Answer:
        gone = asyncio.Event()
        parts = urlsplit(path)
        told = {"host": self.host, "cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in (told | headers).items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8470),
        }
        sent, content = {}, bytearray()
        received = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if received:
                return received.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.update(message)
            else:
                content.extend(message.get("body", b""))
                if until is not None and until.encode() in content:
                    gone.set()

        await self.app(scope, receive, send)
        for name, value in sent["headers"]:
            if name == b"set-cookie":
                self.set_cookies.append(value.decode())
                for each, morsel in SimpleCookie(value.decode()).items():
                    if morsel["max-age"] == "0" or not morsel.value:
                        self.cookies.pop(each, None)
                    else:
                        self.cookies[each] = morsel.value
        known = {name.decode(): value.decode() for name, value in sent["headers"]}
        return Answer(path, sent["status"], known, bytes(content))

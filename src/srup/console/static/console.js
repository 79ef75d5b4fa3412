"use strict";
// Keeps a page up to date, ticks all boxes, reads chosen files, and lets a form be sent once.

// The page: what the server sends takes the place of what differs, and of nothing else. What is being typed, ticked,
// opened or selected stays.
function same(mine, theirs) {
  return mine.nodeType === theirs.nodeType && mine.nodeName === theirs.nodeName && (mine.id || "") === (theirs.id || "");
}

function update(mine, theirs) {
  if (mine.nodeType !== Node.ELEMENT_NODE) {
    if (mine.nodeValue !== theirs.nodeValue) mine.nodeValue = theirs.nodeValue;
    return;
  }
  const kept = new Set(["open"]);
  if (mine.matches("input, textarea, select, option")) return;
  for (const { name } of [...mine.attributes]) {
    if (!theirs.hasAttribute(name) && !kept.has(name)) mine.removeAttribute(name);
  }
  for (const { name, value } of [...theirs.attributes]) {
    if (mine.getAttribute(name) !== value && !kept.has(name)) mine.setAttribute(name, value);
  }
  updateChildren(mine, theirs);
}

function updateChildren(mine, theirs) {
  const named = new Map([...mine.children].filter((each) => each.id).map((each) => [each.id, each]));
  let place = mine.firstChild;
  for (const wanted of [...theirs.childNodes]) {
    const known = wanted.id && named.get(wanted.id);
    if (known && known !== place) {
      mine.insertBefore(known, place);
      place = known;
    }
    if (place && same(place, wanted)) {
      update(place, wanted);
      place = place.nextSibling;
    } else {
      mine.insertBefore(document.importNode(wanted, true), place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    if (place.contains(document.activeElement) && document.activeElement !== document.body) return;
    place.remove();
    place = next;
  }
}

const trouble = document.getElementById("trouble");

function tell(text, link) {
  if (!trouble) return;
  trouble.textContent = text;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link;
    anchor.textContent = "Log in";
    trouble.append(" ", anchor);
  }
  trouble.hidden = !text;
}

let stream = null;

function follow() {
  const at = location.pathname + location.search;
  stream = new EventSource(`/live?${new URLSearchParams({ at, page: document.body.dataset.page })}`);
  stream.addEventListener("open", () => tell(""));
  stream.addEventListener("message", (event) => {
    const made = new DOMParser().parseFromString(`<main>${JSON.parse(event.data)}</main>`, "text/html");
    updateChildren(document.getElementById("main"), made.querySelector("main"));
    prepare();
    document.body.dataset.updates = Number(document.body.dataset.updates || 0) + 1;
  });
  stream.addEventListener("over", () => {
    stop();
    tell("Your session is over. What you have typed stays here until you leave the page.", `/login?next=${encodeURIComponent(at)}`);
  });
  stream.addEventListener("error", () => {
    tell(stream && stream.readyState === EventSource.CONNECTING
      ? "The console does not answer; trying again."
      : "This page is not kept up to date: load it again to see what is new.");
  });
}

function stop() {
  if (stream) stream.close();
  stream = null;
}

// A page that nobody sees needs no stream; a browser has few of them.
document.addEventListener("visibilitychange", () => {
  if (!("live" in document.body.dataset)) return;
  if (document.hidden) stop();
  else if (!stream) follow();
});
addEventListener("pagehide", stop);
addEventListener("pageshow", (event) => {
  for (const button of document.querySelectorAll("button[data-sent]")) {
    button.disabled = false;
    delete button.dataset.sent;
  }
  if (event.persisted && !stream && "live" in document.body.dataset) follow();
});

// Forms. The server does once what is sent twice; this only shows that it was sent.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  const button = event.submitter;
  if (button) setTimeout(() => { button.disabled = true; button.dataset.sent = ""; });
});

document.addEventListener("change", (event) => {
  const all = event.target.dataset && event.target.dataset.all;
  if (!all) return;
  for (const box of event.target.form.elements[all].length === undefined
    ? [event.target.form.elements[all]] : event.target.form.elements[all]) box.checked = event.target.checked;
});

function hex(bytes) {
  return [...new Uint8Array(bytes)].map((each) => each.toString(16).padStart(2, "0")).join("");
}

function prepare() {
  for (const place of document.querySelectorAll("[data-text-of], [data-digest-of]")) {
    const file = place.querySelector("input[type=file]");
    if (place.dataset.digestOf && !(window.crypto && crypto.subtle)) continue;
    place.hidden = false;
    if (file.dataset.ready) continue;
    file.dataset.ready = "1";
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      const target = document.getElementById(place.dataset.textOf || place.dataset.digestOf);
      target.value = place.dataset.textOf
        ? await chosen.text()
        : hex(await crypto.subtle.digest("SHA-256", await chosen.arrayBuffer()));
    });
  }
}

prepare();
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
if ("live" in document.body.dataset && !document.hidden) follow();

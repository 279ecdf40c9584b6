// What changes while a page is open. One tab of a browser listens and tells the others; each then asks for the parts of
// itself that the news is about, as the server renders them.
import { kept, put } from "./farebox.js";

const bar = document.querySelector("[data-account]");
const channel = new BroadcastChannel(`farebox-${bar.dataset.account}`);
const HEAD = { balance: "/dashboard/live/head", announcements: "/dashboard/live/head" };
const stale = new Set();
let asking = false;
let over = false;
let source = null;

function heard(news) {
  for (const place of document.querySelectorAll("[data-live]"))
    if (place.dataset.live.split(" ").includes(news)) stale.add(place.id);
  refresh();
}

// One part after the other; a page in the background waits until somebody looks at it.
async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  for (const id of stale) {
    const place = document.getElementById(id);
    if (place && (place.contains(document.activeElement?.closest("input, select, textarea")) || (id === "log" && !following()))) continue; // after it is left
    stale.delete(id);
    if (!place) continue;
    try {
      const answer = await fetch(HEAD[id] ?? location.href, { headers: { "x-fragment": id, "x-live": "1" } });
      if (answer.redirected) close(); // signed out
      else if (answer.ok) put(document.getElementById(id), await answer.text());
    } catch {} // the stream comes back when the server does, and tells again
  }
  asking = false;
}

const follow = document.getElementById("follow");
const following = () => !follow || follow.checked;
if (follow) {
  follow.closest("label").hidden = false;
  follow.checked = kept.get("follow") !== "no";
  follow.addEventListener("change", () => {
    kept.set("follow", follow.checked ? "yes" : "no");
    refresh();
  });
}

function listen(wait = 5_000) {
  if (over) return;
  source = new EventSource("/dashboard/live");
  for (const news of ["balance", "calls", "steps", "topup", "announcements", "status"])
    source.addEventListener(news, () => {
      channel.postMessage(news);
      heard(news);
    });
  source.addEventListener("hello", () => (wait = 5_000));
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    setTimeout(() => listen(Math.min(wait * 2, 60_000)), wait);
  });
}

function close() {
  over = true;
  source?.close();
}

channel.addEventListener("message", (event) => (event.data === "bye" ? close() : heard(event.data)));
document.addEventListener("visibilitychange", refresh);
document.addEventListener("stale", (event) => {
  if (event.detail) stale.add(event.detail);
  refresh();
});
document.addEventListener("focusout", () => setTimeout(refresh));
document.querySelector("form[action='/logout']")?.addEventListener("submit", () => {
  channel.postMessage("bye");
  close();
  try {
    localStorage.removeItem(`playground-${bar.dataset.account}`); // what was written there is for nobody else
  } catch {}
});
if (navigator.locks) navigator.locks.request(`farebox-${bar.dataset.account}`, () => new Promise(() => listen()));
else listen();

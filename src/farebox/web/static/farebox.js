// Small help for pages that work without it: copy buttons, parts of a page exchanged in place, keys, read-outs of charts.
const policy = window.trustedTypes?.createPolicy("farebox", { createHTML: (html) => html });
export const parse = (html) => {
  const template = document.createElement("template");
  template.innerHTML = policy ? policy.createHTML(html) : html;
  return template.content;
};
export const kept = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch {} }, // storage may be switched off
};

// Puts what the server rendered into its place. What was opened there stays open, what had the focus has it again, what a
// chart read out it reads out still, and what has changed is said: a region that came with its words would be read to nobody.
export function put(place, html) {
  const fresh = parse(html);
  const held = place.contains(document.activeElement) && named(document.activeElement);
  const open = [...place.querySelectorAll("details")].map((one) => one.open);
  const lit = place.querySelector(".hit.lit")?.dataset.of;
  enhance(fresh);
  if (fresh.firstElementChild?.id === place.id) {
    const next = fresh.firstElementChild;
    place.replaceWith(fresh);
    place = next;
  } else place.replaceChildren(fresh);
  [...place.querySelectorAll("details")].forEach((one, at) => (one.open = open[at] ?? one.open));
  if (held) [...place.querySelectorAll("a, button, summary, [tabindex]")].find((one) => named(one) === held)?.focus({ preventScroll: true });
  if (lit) place.querySelector(".chart")?.dispatchEvent(new CustomEvent("read", { detail: lit }));
  const words = place.querySelector("[data-say]")?.textContent.trim().replace(/\s+/g, " ");
  const said = document.getElementById(`${place.id}-said`);
  if (words && said && put.last !== words) said.textContent = words;
  put.last = words;
}
const named = (one) => one.getAttribute("aria-label") || one.getAttribute("href") || one.textContent;

export function toast(words) {
  let place = document.getElementById("toast");
  if (!place) {
    place = Object.assign(document.createElement("p"), { id: "toast", className: "toast" });
    place.setAttribute("role", "status");
    document.body.append(place);
  }
  place.textContent = words;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (place.textContent = ""), 2500);
}

function enhance(root) {
  for (const source of root.querySelectorAll("[data-copy]")) addCopy(source);
  for (const chart of root.querySelectorAll(".chart")) readable(chart);
  for (const left of root.querySelectorAll("[data-countdown]")) countDown(left);
  for (const link of root.querySelectorAll("a[data-fill]")) link.addEventListener("click", (event) => fill(event, link));
}

// A preset fills the field it stands beside; what else was chosen stays chosen.
function fill(event, link) {
  event.preventDefault();
  link.parentElement.querySelector("input").value = link.dataset.fill;
}

// How long something is still held. It stops with its element, which a newer one may replace; at the end the page asks anew.
function countDown(left) {
  left.hidden = false;
  let shown = false;
  const tick = () => {
    if (shown && !left.isConnected) return;
    shown ||= left.isConnected;
    const seconds = Math.max(0, Math.ceil((new Date(left.dataset.countdown) - Date.now()) / 1000));
    left.textContent = seconds ? `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left` : "over";
    left.classList.toggle("soon", seconds < 120);
    if (seconds) setTimeout(tick, 1000);
    else setTimeout(() => document.dispatchEvent(new CustomEvent("stale", { detail: left.closest("[data-live]")?.id })), 1000);
  };
  tick();
}

function addCopy(source) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  if (source.dataset.label) button.setAttribute("aria-label", `Copy ${source.dataset.label}`);
  button.addEventListener("click", async () => {
    const text = source instanceof HTMLInputElement ? source.value : source.dataset.copy || source.innerText;
    await navigator.clipboard.writeText(text.trim());
    button.textContent = "Copied";
    toast("Copied");
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  source.after(button);
}

// A chart: the column under the pointer or chosen by arrow keys is read out, the others step back.
function readable(chart) {
  const columns = [...chart.querySelectorAll(".hit")];
  if (!columns.length) return;
  const texts = columns.map((one) => {
    const title = one.querySelector("title");
    const words = title.textContent.trim();
    title.remove(); // the browser's own read-out would stand over ours
    one.closest("a")?.setAttribute("aria-label", words);
    one.dataset.of = words.split(": ")[0];
    return words;
  });
  const tip = Object.assign(document.createElement("output"), { className: "tip", hidden: true });
  tip.setAttribute("aria-live", "polite");
  chart.append(tip);
  chart.tabIndex = 0;
  chart.setAttribute("aria-description", "Arrow keys read out its bars.");
  let at = -1;
  const show = (next) => {
    at = next;
    tip.hidden = at < 0;
    chart.classList.toggle("reads", at >= 0);
    for (const bar of chart.querySelectorAll("[data-column]")) bar.classList.toggle("lit", bar.dataset.column === columns[at]?.dataset.at);
    columns.forEach((one, place) => one.classList.toggle("lit", place === at));
    if (at < 0) return;
    tip.replaceChildren(...texts[at].split("\n").map((line, index) => Object.assign(document.createElement(index ? "span" : "strong"), { textContent: line })));
    const box = chart.getBoundingClientRect();
    const bar = columns[at].getBoundingClientRect();
    const beside = bar.left + bar.width / 2 > box.left + box.width / 2 ? bar.left - box.left - tip.offsetWidth - 8 : bar.right - box.left + 8;
    tip.style.left = `${Math.max(0, Math.min(beside, box.width - tip.offsetWidth))}px`;
  };
  columns.forEach((one, place) => one.addEventListener("pointerenter", () => show(place)));
  chart.addEventListener("pointerleave", () => show(-1));
  chart.addEventListener("blur", () => show(-1));
  chart.addEventListener("read", (event) => show(columns.findIndex((one) => one.dataset.of === event.detail)));
  chart.addEventListener("keydown", (event) => {
    const last = columns.length - 1;
    const next = { ArrowRight: Math.min(at + 1, last), ArrowLeft: at < 0 ? last : Math.max(at - 1, 0), Home: 0, End: last, Escape: -1 }[event.key];
    if (event.key === "Enter") columns[at]?.closest("a")?.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    if (next === undefined) return;
    event.preventDefault();
    show(next);
  });
}

enhance(document);

document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[data-swap]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const place = document.getElementById(link.dataset.swap);
  if (!place) return;
  event.preventDefault();
  const target = link.href.baseVal ?? link.href; // a bar of a chart is a link inside SVG
  const answer = await fetch(target, { headers: { "x-fragment": link.dataset.swap } });
  if (!answer.ok || answer.redirected) return void (location.href = target);
  put(place, await answer.text());
  history.pushState({}, "", target);
});
addEventListener("popstate", () => location.reload());

// Keys: "g" and a letter go to a page, "/" to the search for a request, "?" tells them.
const pages = { o: "", u: "/usage", r: "/requests", k: "/keys", t: "/transactions", p: "/playground", l: "/limits", s: "/settings", d: "/doctor" };
const names = "g o overview · g u usage · g r requests · g k keys · g t transactions · g p playground · g l limits · g s settings · g d check my set-up · / find a request";
let going = 0;
if (document.querySelector(".shell")) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, [contenteditable]")) return;
    if (event.timeStamp - going < 1500 && event.key in pages) return void (location.href = "/dashboard" + pages[event.key]);
    going = event.key === "g" ? event.timeStamp : 0;
    if (event.key === "?") toast(names);
    if (event.key !== "/") return;
    event.preventDefault();
    const field = document.querySelector("input[name=id]");
    if (field) field.focus();
    else location.href = "/dashboard/requests";
  });
}

// Tabs over the links that choose a language: all boxes of a page switch together, and the choice is remembered.
const KEY = "lang";
const lists = [...document.querySelectorAll("[role=tablist]")];
const tabsOf = (list) => [...list.querySelectorAll("[role=tab]")];

function choose(language) {
  for (const list of lists) {
    const tabs = tabsOf(list);
    const chosen = tabs.find((tab) => tab.dataset.lang === language) ?? tabs[0];
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  }
}

function take(tab) {
  const before = tab.getBoundingClientRect().top;
  choose(tab.dataset.lang);
  scrollBy({ top: tab.getBoundingClientRect().top - before, behavior: "instant" }); // other boxes have grown or shrunk
  tab.focus({ preventScroll: true });
  try {
    localStorage.setItem(KEY, tab.dataset.lang);
  } catch {} // storage may be switched off: then it holds for this page
}

for (const list of lists) {
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (!tab || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    take(tab);
  });
  list.addEventListener("keydown", (event) => {
    const tabs = tabsOf(list);
    const at = tabs.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1, " ": at }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    take(tabs[(next + tabs.length) % tabs.length]);
  });
}

let remembered = null;
try {
  remembered = localStorage.getItem(KEY);
} catch {}
const asked = new URLSearchParams(location.search).get(KEY);
const shown = document.querySelector("[role=tab][aria-selected=true]")?.dataset.lang;
if (lists.length) choose(asked ?? remembered ?? shown);

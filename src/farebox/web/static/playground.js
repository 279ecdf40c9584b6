// The playground: one call of the Messages API, streamed, stopped, counted and shown as code. What is written is kept in
// this browser alone.
import { kept, toast } from "./farebox.js";

const $ = (id) => document.getElementById(id);
const form = $("ask");
const turns = $("turns");
const name = `playground-${document.querySelector("[data-account]").dataset.account}`;
const pattern = turns.firstElementChild.cloneNode(true);
const MOST_TURNS = 100;
const SHOWN_CHARS = 200_000;
let stop = null;

// what is asked

function addTurn(role = "user", text = "") {
  const turn = pattern.cloneNode(true);
  turn.querySelector("[data-role]").value = role;
  turn.querySelector("[data-text]").value = text;
  const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
  remove.addEventListener("click", () => {
    turn.remove();
    number();
    changed();
  });
  turn.querySelector(".row").append(remove);
  turns.append(turn);
  number();
  return turn;
}

function number() {
  [...turns.children].forEach((turn, at) => {
    turn.querySelector("[data-role]").setAttribute("aria-label", `Who says turn ${at + 1}`);
    turn.querySelector("[data-text]").setAttribute("aria-label", `Turn ${at + 1}`);
    turn.querySelector("button").hidden = turns.children.length === 1;
  });
  $("add").disabled = turns.children.length >= MOST_TURNS;
}

const said = () =>
  [...turns.children].map((turn) => ({ role: turn.querySelector("[data-role]").value, content: turn.querySelector("[data-text]").value }));

// Gives the body of the call. Throws words for people where the tools are no JSON.
function body() {
  const field = form.elements;
  const asked = { model: field.model.value, max_tokens: Number(field.max_tokens.value) };
  if (field.system.value.trim()) asked.system = field.system.value;
  if (field.temperature.value) asked.temperature = Number(field.temperature.value);
  if (field.thinking.value) asked.thinking = { type: "enabled", budget_tokens: Number(field.thinking.value) };
  if (field.tools.value.trim()) {
    try {
      asked.tools = JSON.parse(field.tools.value);
    } catch (error) {
      throw new Error(`Tools: ${error.message}`);
    }
  }
  asked.messages = said().filter((turn) => turn.content.trim());
  asked.stream = true;
  return asked;
}

function wrong(words) {
  $("wrong").textContent = words;
  $("wrong").hidden = !words;
}

const FIELDS = ["model", "system", "max_tokens", "temperature", "thinking", "tools"];

function changed() {
  const state = { turns: said(), ...Object.fromEntries(FIELDS.map((one) => [one, form.elements[one].value])) };
  kept.set(name, JSON.stringify(state));
  let asked;
  try {
    asked = body();
    wrong("");
  } catch (error) {
    return wrong(error.message);
  }
  $("request").textContent = JSON.stringify(asked, null, 2);
  $("code").textContent = CODE[$("language").value](asked);
  clearTimeout(changed.timer);
  $("estimate").textContent = "";
  if (asked.messages.length && !$("send").disabled) changed.timer = setTimeout(() => estimate(asked), 800);
}

const send = (path, asked, signal) =>
  fetch(`/dashboard/playground/${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked), signal });

async function estimate(asked) {
  try {
    const answer = await send("quote", asked);
    if (!answer.ok || answer.redirected) return;
    const quote = await answer.json();
    $("estimate").textContent = `About $${quote.expected_cost}, at most $${quote.highest_cost}.${quote.refusal ? ` ${quote.refusal.message}` : ""}`;
  } catch {} // only an estimate
}

// the same call as code

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const python = (value, indent = "    ") =>
  JSON.stringify(value, null, 4).replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b/g, (word) => ({ true: "True", false: "False", null: "None" })[word] ?? word).replaceAll("\n", "\n" + indent);
const base = $("play").dataset.base;
const CODE = {
  curl: (asked) => `curl ${base}/v1/messages \\\n  -H "x-api-key: $ANTHROPIC_API_KEY" \\\n  -H "anthropic-version: 2023-06-01" \\\n  -H "content-type: application/json" \\\n  --no-buffer \\\n  -d ${quoted(JSON.stringify(asked, null, 2))}`,
  python: ({ stream, ...asked }) => `import anthropic\n\nclient = anthropic.Anthropic(base_url="${base}")\nwith client.messages.stream(\n${Object.entries(asked).map(([key, value]) => `    ${key}=${python(value)},\n`).join("")}) as stream:\n    for text in stream.text_stream:\n        print(text, end="", flush=True)`,
  typescript: ({ stream, ...asked }) => `import Anthropic from "@anthropic-ai/sdk";\n\nconst client = new Anthropic({ baseURL: "${base}" });\nconst stream = client.messages.stream(${JSON.stringify(asked, null, 2)});\nstream.on("text", (text) => process.stdout.write(text));\nawait stream.finalMessage();`,
};

// the answer

const meter = (id, value) => ($(`m-${id}`).textContent = value);

class Answer {
  constructor() {
    this.began = performance.now();
    this.first = null;
    this.blocks = [];
    for (const id of ["answer", "events"]) $(id).replaceChildren();
    for (const id of ["input", "output", "first", "speed", "cost"]) meter(id, "–");
    $("onward").hidden = true;
  }

  take(event) {
    if ($("events").textContent.length < SHOWN_CHARS) $("events").append(`${event.type}\n${JSON.stringify(event)}\n\n`);
    this[event.type]?.(event);
  }

  message_start({ message: { usage } }) {
    meter("input", ((usage.input_tokens ?? 0) + (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0)).toLocaleString("en"));
  }

  content_block_start({ index, content_block: block }) {
    const place = document.createElement(block.type === "text" ? "div" : "pre");
    if (block.type !== "text") place.className = "soft";
    if (block.name) place.append(`${block.name} `);
    this.blocks[index] = { type: block.type, place };
    $("answer").append(place);
  }

  content_block_delta({ index, delta }) {
    if (this.first === null) meter("first", `${Math.round((this.first = performance.now()) - this.began)} ms`);
    this.blocks[index]?.place.append(delta.text ?? delta.thinking ?? delta.partial_json ?? "");
  }

  message_delta({ delta, usage }) {
    meter("output", (usage.output_tokens ?? 0).toLocaleString("en"));
    const s = (performance.now() - (this.first ?? this.began)) / 1000;
    if (s > 0.05) meter("speed", `${Math.round(usage.output_tokens / s).toLocaleString("en")} tok/s`);
    $("ended").textContent = delta.stop_reason ?? "";
    $("onward").hidden = !this.text;
  }

  error({ error }) {
    wrong(error.message);
    $("ended").textContent = "broken off";
  }

  get text() {
    return this.blocks.filter((one) => one?.type === "text").map((one) => one.place.textContent).join("");
  }
}

async function relay(answer, shown) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data:"));
      if (data) shown.take(JSON.parse(data.slice(5)));
    }
  }
}

// A call that was stopped is settled a little later, once the provider has told what it came to.
async function settled(id) {
  meter("cost", "…");
  for (let tries = 0; tries < 30; tries++) {
    const answer = await fetch(`/dashboard/playground/calls/${id}`);
    if (answer.status === 200 && !answer.redirected) {
      const call = await answer.json();
      meter("cost", call.cost);
      meter("input", call.input_tokens.toLocaleString("en"));
      return meter("output", call.output_tokens.toLocaleString("en"));
    }
    await new Promise((done) => setTimeout(done, 500));
  }
  meter("cost", "see the log");
}

async function ask() {
  if (stop || $("send").disabled || !form.reportValidity()) return;
  let asked;
  try {
    asked = body();
    if (!asked.messages.length) throw new Error("Say something first.");
  } catch (error) {
    return wrong(error.message);
  }
  wrong("");
  let id = null;
  stop = new AbortController();
  $("stop").disabled = false;
  $("send").disabled = true;
  $("ended").textContent = "…";
  const shown = new Answer();
  try {
    const answer = await send("messages", asked, stop.signal);
    if (answer.redirected) throw new Error("You are signed out: load this page again.");
    if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.error?.message ?? `The answer was ${answer.status}: load this page again.`);
    id = answer.headers.get("request-id");
    await relay(answer, shown);
  } catch (error) {
    $("ended").textContent = error.name === "AbortError" ? "stopped" : "";
    if (error.name !== "AbortError") wrong(error.message);
  }
  stop = null;
  $("stop").disabled = true;
  $("send").disabled = false;
  $("onward").hidden = !shown.text;
  $("onward").onclick = () => {
    addTurn("assistant", shown.text.trimEnd());
    addTurn().querySelector("[data-text]").focus();
    $("onward").hidden = true;
    changed();
  };
  if (id) await settled(id).catch(() => meter("cost", "see the log"));
}

// the page

const tabs = [...document.querySelectorAll(".pane [role=tab]")];
function choose(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", String(one === tab));
    one.tabIndex = one === tab ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
}
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(at + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});

for (const id of ["request", "code"]) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText($(id).textContent);
    toast("Copied");
  });
  $(id).before(button);
}

let state = null;
try {
  state = JSON.parse(kept.get(name));
} catch {} // of another version
turns.replaceChildren();
for (const turn of state?.turns?.length ? state.turns : [{}]) addTurn(turn.role, turn.content);
for (const one of FIELDS) if (state?.[one] !== undefined) form.elements[one].value = state[one];
if (!form.elements.model.value) form.elements.model.selectedIndex = 0; // it is no longer sold

form.addEventListener("input", changed);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  }
});
$("language").addEventListener("change", changed);
$("add").addEventListener("click", () => {
  addTurn(said().at(-1)?.role === "user" ? "assistant" : "user").querySelector("[data-text]").focus();
  changed();
});
$("stop").addEventListener("click", () => stop?.abort());
changed();

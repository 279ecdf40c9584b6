// Times the pieces of a test stream as they come, and says whether something on the way collects them.
const $ = (id) => document.getElementById(id);
const button = $("test");
const bar = $("progress");
const APART_MS = 20; // what comes closer together came at once
const ms = (span) => `${Math.round(span).toLocaleString("en")} ms`;

async function run() {
  const came = []; // when each piece was here
  const began = performance.now();
  const answer = await fetch("/dashboard/doctor/stream", { headers: { accept: "text/event-stream" }, cache: "no-store", signal: AbortSignal.timeout(20_000) });
  if (answer.redirected) throw new Error("You are signed out: load this page again.");
  if (!answer.ok) throw new Error(answer.status === 429 ? (await answer.text()).trim() : `The answer was ${answer.status}: load this page again.`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const _ of blocks) came.push(performance.now() - began);
      bar.value = came.length;
      if (came.length) $("m-first").textContent = ms(came[0]);
      $("m-pieces").textContent = `${came.length} of ${bar.max}`;
    }
  } catch {} // it broke off: told by what has come
  return came;
}

function judge(came) {
  if (came.length < bar.max) return ["fail", `The stream broke off after ${came.length} of ${bar.max} pieces: something on the way ends it.`];
  const pauses = came.slice(1).map((at, index) => at - came[index]);
  const spread = came.at(-1) - came[0];
  $("m-spread").textContent = ms(spread);
  $("m-pause").textContent = ms(Math.max(...pauses));
  const apart = pauses.filter((pause) => pause > APART_MS).length;
  if (spread > 500 && apart >= pauses.length / 2) return ["ok", "Each piece comes as it is sent."];
  return ["fail", `The pieces came ${apart ? "in lumps" : "all at once"}: something on the way holds streams back.`];
}

button.addEventListener("click", async () => {
  if (button.disabled) return;
  button.disabled = true;
  bar.value = 0;
  for (const id of ["first", "spread", "pause", "pieces"]) $(`m-${id}`).textContent = "–";
  $("verdict").className = "";
  $("verdict").textContent = "Testing…";
  let [state, words] = ["fail", ""];
  try {
    [state, words] = judge(await run());
  } catch (error) {
    words = error.name === "TimeoutError" || error instanceof TypeError ? "The test did not get through: the server does not answer." : error.message;
  }
  $("verdict").className = state === "ok" ? "well" : "bad";
  $("verdict").textContent = words;
  button.disabled = false;
});

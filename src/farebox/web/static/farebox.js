// Small help for pages that work without it: copy buttons, and parts of a page exchanged in place.
const policy = window.trustedTypes?.createPolicy("farebox", { createHTML: (html) => html });
const parse = (html) => {
  const template = document.createElement("template");
  template.innerHTML = policy ? policy.createHTML(html) : html;
  return template.content;
};

for (const source of document.querySelectorAll("[data-copy]")) addCopy(source);

function addCopy(source) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = source instanceof HTMLInputElement ? source.value : source.dataset.copy || source.innerText;
    await navigator.clipboard.writeText(text.trim());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  source.after(button);
}

document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[data-swap]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const place = document.getElementById(link.dataset.swap);
  if (!place) return;
  event.preventDefault();
  const target = link.href.baseVal ?? link.href; // a bar of a chart is a link inside SVG
  const answer = await fetch(target, { headers: { "x-fragment": link.dataset.swap } });
  if (!answer.ok || answer.redirected) return void (location.href = target);
  place.replaceChildren(parse(await answer.text()));
  history.pushState({}, "", target);
});
addEventListener("popstate", () => location.reload());

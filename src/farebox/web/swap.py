"""The whole of the change that a client needs, as the home page shows it: a diff in each language."""

from typing import Final

from msgspec import Struct

from farebox.web.offer import Offer

LANGUAGES: Final = {
    "claude-code": "Claude Code",
    "python": "Python",
    "typescript": "TypeScript",
    "curl": "cURL",
}


class Swap(Struct, frozen=True):
    """Lines with a sign before each: "-" goes, "+" comes, " " stays."""

    language: str
    title: str
    lines: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """What there is afterwards: the text to copy."""
        return "\n".join(line for sign, line in self.lines if sign != "-")


def samples(offer: Offer, key: str, model: str) -> list[tuple[str, str, str]]:
    """Write what uses a key that was just made: language, its name, and the text. Claude Code first."""
    found = []
    for swap in swaps(offer, key, model):
        text = swap.text
        if swap.language == "claude-code":  # an empty one keeps a key of another house from being sent beside it
            text = text.replace("\nclaude", "\nexport ANTHROPIC_API_KEY=\nclaude")
        found.append((swap.language, swap.title, text))
    return found


def swaps(offer: Offer, key: str = "", model: str = "") -> tuple[Swap, ...]:
    """Write the change for this server, Claude Code first; where no key is given, with one to fill in."""
    model, key = model or offer.sample.id, key or f"{offer.key_prefix}your-key"
    host = offer.base_url
    texts = {
        "claude-code": f"""
+ export ANTHROPIC_BASE_URL={host}
- export ANTHROPIC_API_KEY=sk-ant-...
+ export ANTHROPIC_AUTH_TOKEN={key}
  claude""",
        "python": f"""
  from anthropic import Anthropic

- client = Anthropic()
+ client = Anthropic(
+     base_url="{host}",
+     api_key="{key}",
+ )
  message = client.messages.create(
      model="{model}", max_tokens=200,
      messages=[{{"role": "user", "content": "Hello!"}}],
  )
  print(message.content[0].text)""",
        "typescript": f"""
  import Anthropic from "@anthropic-ai/sdk";

- const client = new Anthropic();
+ const client = new Anthropic({{
+   baseURL: "{host}",
+   apiKey: "{key}",
+ }});
  const message = await client.messages.create({{
    model: "{model}", max_tokens: 200,
    messages: [{{ role: "user", content: "Hello!" }}],
  }});
  console.log(message.content);""",
        "curl": f"""
- curl https://api.anthropic.com/v1/messages \\
-   -H "x-api-key: sk-ant-..." \\
+ curl {host}/v1/messages \\
+   -H "x-api-key: {key}" \\
    -H "anthropic-version: 2023-06-01" \\
    -H "content-type: application/json" \\
    -d '{{"model": "{model}", "max_tokens": 200,
         "messages": [{{"role": "user", "content": "Hello!"}}]}}'""",
    }
    return tuple(
        Swap(
            language,
            title,
            tuple((line[:1] or " ", line[2:]) for line in texts[language].removeprefix("\n").split("\n")),
        )
        for language, title in LANGUAGES.items()
    )

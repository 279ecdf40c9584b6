"""What speaks the Messages API: Anthropic, another Farebox, vLLM, llama.cpp, Ollama. Bodies cross as they came."""

from farebox.http.client import Answer
from farebox.secret import Secret
from farebox.upstreams.kinds.bodies import beside, with_fields
from farebox.upstreams.kinds.kind import Ask, Outgoing


class Anthropic:
    """Adds the credential; changes the model's name where the upstream has one of its own for it."""

    speaks_messages = True

    def __init__(self, api_key: Secret) -> None:
        self._credential = [(b"x-api-key", api_key.reveal().encode("latin-1"))]

    def has(self, path: str) -> bool:  # noqa: ARG002
        return True

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        body = ask.body if name == ask.said else await beside(ask.body, with_fields, model=name)
        return Outgoing(ask.method, ask.target, ask.headers + self._credential, body)

    def reply(self, ask: Ask, answer: Answer) -> Answer:  # noqa: ARG002
        return answer

    async def close(self) -> None:
        """Nothing of it is open."""

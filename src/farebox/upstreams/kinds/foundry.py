"""Microsoft Foundry: the Messages API at Azure, let in by a key of the resource or by a token of Microsoft Entra.

Sources: Microsoft, "Use Claude models in Foundry" and "OAuth 2.0 client credentials flow"; the client AnthropicFoundry
of Anthropic's SDK.
"""

from collections.abc import Mapping
from typing import Final

from farebox.errors import NotFound
from farebox.http.client import Answer
from farebox.http.exchange import Headers
from farebox.secret import Secret
from farebox.upstreams.kinds.bodies import beside, with_fields
from farebox.upstreams.kinds.clouds import upward, with_betas
from farebox.upstreams.kinds.faults import fault, shown
from farebox.upstreams.kinds.kind import COUNT_TOKENS, MESSAGES, Ask, Outgoing, Reply
from farebox.upstreams.kinds.tokens import Tokens

SCOPE: Final = "https://ai.azure.com/.default"


def entra_tokens(authority: str, tenant_id: str, client_id: str, client_secret: Secret) -> Tokens:
    """Give the tokens of an application in Entra. Raises ValueError for an authority that is no URL."""
    form = {"grant_type": "client_credentials", "client_id": client_id, "scope": SCOPE}
    url = f"{authority.rstrip('/')}/{tenant_id}/oauth2/v2.0/token"
    return Tokens(url, lambda: {**form, "client_secret": client_secret.reveal()})


class Foundry:
    """One resource of Foundry; what it calls a model is the name of its deployment."""

    speaks_messages = True

    def __init__(self, api_key: Secret, tokens: Tokens | None, betas: Mapping[str, str]) -> None:
        key = api_key.reveal().encode("latin-1")
        self._keys: Headers = [(b"x-api-key", key), (b"api-key", key)]
        self._tokens = tokens
        self._betas = betas

    def has(self, path: str) -> bool:
        return path in {MESSAGES, COUNT_TOKENS}

    async def prepare(self, ask: Ask, name: str) -> Outgoing:
        if not self.has(ask.path):
            raise NotFound(f"{ask.path} is not served by this upstream")
        body = ask.body if name == ask.said else await beside(ask.body, with_fields, model=name)
        headers = with_betas(upward(ask.headers), self._betas)
        credential = self._keys if self._tokens is None else [(b"authorization", await self._tokens.bearer())]
        return Outgoing(ask.method, ask.target, [*headers, *credential], body)

    def reply(self, ask: Ask, answer: Answer) -> Reply:  # noqa: ARG002
        if answer.status == 401 and self._tokens is not None:
            self._tokens.forget()
        if answer.status >= 400:
            return fault(answer)
        answer.headers = shown(answer.headers)
        return answer

    async def close(self) -> None:
        if self._tokens is not None:
            await self._tokens.close()

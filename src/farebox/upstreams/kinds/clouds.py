"""What the clouds' kinds share: the API version and the betas, which some want in the body; headers that stay here."""

from collections.abc import Mapping
from typing import Final

from farebox.http.exchange import Headers

VERSION: Final = b"anthropic-version"
BETA: Final = b"anthropic-beta"
_FIRST_VERSION: Final = "2023-06-01"
_STAY_HERE: Final = (b"x-amz-", b"x-amzn-", b"x-goog-", b"x-vertex-", b"x-ms-", b"apim-", b"azureml-", b"ocp-apim-")
"""Headers of clouds choose accounts, quotas and prices of the operator's."""
_KEYS: Final = frozenset({b"api-key", b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""So do keys; and a request of another method is another one (Google's APIs heed these)."""
CLOUD_BETAS: Final[Mapping[str, str]] = {"advanced-tool-use-2025-11-20": "tool-search-tool-2025-10-19"}
"""What Bedrock and Vertex AI call betas otherwise (Claude Code's own table)."""


def upward(headers: Headers, without: frozenset[bytes] = frozenset()) -> Headers:
    """Leave out the headers that must not reach a cloud."""
    return [
        field
        for field in headers
        if field[0] not in without and field[0] not in _KEYS and not field[0].startswith(_STAY_HERE)
    ]


def version_of(headers: Headers, first: str) -> str:
    """Give the API version for the body; `first` is what the platform calls that of 2023-06-01."""
    said = next((value for name, value in headers if name == VERSION), b"").decode("latin-1").strip()
    return said if said and said != _FIRST_VERSION else first


def betas_of(headers: Headers, names: Mapping[str, str]) -> list[str]:
    """List the betas that are asked for, by the upstream's names; one whose name is empty is left out."""
    said = ",".join(value.decode("latin-1") for name, value in headers if name == BETA)
    wanted = (names.get(beta, beta) for part in said.split(",") if (beta := part.strip()))
    return list(dict.fromkeys(beta for beta in wanted if beta))


def with_betas(headers: Headers, names: Mapping[str, str]) -> Headers:
    """Write the betas anew where the upstream has other names for some; else leave the headers as they came."""
    said = ",".join(value.decode("latin-1") for name, value in headers if name == BETA)
    if not any(part.strip() in names for part in said.split(",")):
        return headers
    kept = [field for field in headers if field[0] != BETA]
    betas = betas_of(headers, names)
    return [*kept, (BETA, ",".join(betas).encode("latin-1"))] if betas else kept

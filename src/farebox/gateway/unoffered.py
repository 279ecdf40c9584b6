"""What of the provider's API is not offered, and why: it costs what no usage tells, or reaches other customers.

All customers share the operator's accounts upstream. What is kept there belongs to whoever asks for it, so only what
this gateway can tell apart by customer, and can price by what the upstream reports, is let through. Everything else is
a 404 that says so; docs/offered.md has the whole table.
"""

from typing import Final

from farebox.gateway.settings import Features

_AGENTS: Final = (
    "managed agents are not offered here: what their sessions cost by the hour is in no usage that a gateway sees, and "
    "their state would be shared by all customers; run the loop yourself"
)
_OPERATORS: Final = "the provider's administration is the operator's own; see …/balance, …/usage and …/key for yours"
UNOFFERED: Final = {
    "/agents": _AGENTS,
    "/sessions": _AGENTS,
    "/environments": _AGENTS,
    "/deployments": _AGENTS,
    "/deployment_runs": _AGENTS,
    "/vaults": _AGENTS,
    "/memory_stores": _AGENTS,
    "/dreams": _AGENTS,
    "/tunnels": _AGENTS,
    "/organizations": _OPERATORS,
    "/user_profiles": "user profiles are not offered here: they can move the bill to another organisation",
    "/skills": (
        "skills are not offered here: they would be shared by all customers, and run in containers whose hours are in "
        "no usage that a gateway sees; send what they say in the prompt"
    ),
    "/files": (
        "files are not offered here: the operator has not switched them on, and they take room in an account that all "
        "customers share; send the content itself"
    ),
    "/messages/cache_touch": "keeping a cache warm is not offered here: its cost is in no usage that a gateway sees",
    "/complete": "text completions are gone from the API; send messages",
}
"""Paths below the base URL, and everything below each of them, with the words of their refusal."""


def why_not(path: str) -> str | None:
    """Say why a path below the base URL is not offered; None of one that the API does not have either."""
    for begin, words in UNOFFERED.items():
        if path == begin or path.startswith(f"{begin}/"):
            return words
    return None


def families(features: Features) -> dict[str, list[str]]:
    """Give what is not offered: why, and the paths below the base URL that it is said of."""
    found: dict[str, list[str]] = {}
    for path, words in UNOFFERED.items():
        if path != "/files" or not features.files:
            found.setdefault(words, []).append(f"/v1{path}")
    return found

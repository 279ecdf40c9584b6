"""In what manner a server speaks Chat Completions, where servers differ."""

from typing import Literal

import msgspec


class Manner(msgspec.Struct, frozen=True):
    """As the operator has set it for one upstream."""

    max_tokens_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    output_tokens: int = 0
    """The most that the server writes at once: a larger max_tokens is lowered to it. 0: as much as is asked."""
    thinking: Literal["off", "reasoning_effort"] = "off"
    thinking_history: Literal["drop", "reasoning_content"] = "drop"
    later_system: Literal["system", "user"] = "system"
    takes: frozenset[str] = frozenset()
    """What it takes beyond what all servers do: top_k, pdf, continuous_usage."""

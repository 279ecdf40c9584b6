"""Upstreams that speak OpenAI's Chat Completions: asks and answers of the Messages API, translated both ways."""

from farebox.upstreams.kinds.chat.kind import Chat
from farebox.upstreams.kinds.chat.manner import Manner

__all__ = ["Chat", "Manner"]

"""The models the simulator plays, with what the real ones accept (prices are not its business)."""

from typing import Any, Final

import msgspec


class Model(msgspec.Struct, frozen=True):
    """A model as GET /v1/models shows it, and the generation that decides which fields it takes."""

    id: str
    name: str
    generation: tuple[int, int]
    context: int
    max_output: int
    created_at: str
    alias: str = ""

    @property
    def takes_sampling(self) -> bool:
        """Whether temperature, top_p and top_k are accepted: models after 4.6 refuse them."""
        return self.generation <= (4, 6)

    @property
    def takes_prefill(self) -> bool:
        return self.generation < (4, 6)

    @property
    def takes_thinking_budget(self) -> bool:
        return self.generation < (4, 7)

    @property
    def always_thinks(self) -> bool:
        """Whether `thinking: disabled` is an error."""
        return "fable" in self.id or "mythos" in self.id or self.id == "claude-opus-5-5"

    @property
    def takes_forced_tools(self) -> bool:
        return self.id not in {"claude-opus-5-5", "claude-fable-5-1", "claude-mythos-5-1"}

    @property
    def has_fast_mode(self) -> bool:
        return self.id in {"claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-fable-5-2"}

    @property
    def names_geography(self) -> bool:
        return self.generation >= (4, 6)

    def info(self) -> dict[str, Any]:
        """Give the ModelInfo of the API."""
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.name,
            "created_at": self.created_at,
            "lifecycle": "active",
            "deprecated_at": None,
            "retires_at": None,
            "line": {},
            "max_input_tokens": self.context,
            "max_tokens": self.max_output,
            "capabilities": {},
        }


def _dated(alias: str, date: str, name: str, created_at: str) -> Model:
    """Give a model of before 4.6: asked for by its alias, it answers by its dated id."""
    return Model(f"{alias}-{date}", name, (4, 5), 200_000, 64_000, created_at, alias)


_M: Final = 1_000_000
MODELS: Final = (
    Model("claude-fable-5-2", "Claude Fable 5.2", (5, 2), _M, 128_000, "2026-11-09T00:00:00Z"),
    Model("claude-haiku-5-5", "Claude Haiku 5.5", (5, 5), _M, 128_000, "2026-10-07T00:00:00Z"),
    Model("claude-sonnet-5-5", "Claude Sonnet 5.5", (5, 5), _M, 128_000, "2026-09-22T00:00:00Z"),
    Model("claude-opus-5-5", "Claude Opus 5.5", (5, 5), _M, 128_000, "2026-09-08T00:00:00Z"),
    Model("claude-fable-5-1", "Claude Fable 5.1", (5, 1), _M, 128_000, "2026-08-31T00:00:00Z"),
    Model("claude-sonnet-5", "Claude Sonnet 5", (5, 0), _M, 128_000, "2026-07-14T00:00:00Z"),
    Model("claude-fable-5", "Claude Fable 5", (5, 0), _M, 128_000, "2026-07-02T00:00:00Z"),
    Model("claude-opus-5", "Claude Opus 5", (5, 0), _M, 128_000, "2026-06-25T00:00:00Z"),
    Model("claude-opus-4-8", "Claude Opus 4.8", (4, 8), _M, 128_000, "2026-05-12T00:00:00Z"),
    Model("claude-opus-4-7", "Claude Opus 4.7", (4, 7), _M, 128_000, "2026-04-09T00:00:00Z"),
    Model("claude-sonnet-4-6", "Claude Sonnet 4.6", (4, 6), _M, 128_000, "2026-02-17T00:00:00Z"),
    Model("claude-opus-4-6", "Claude Opus 4.6", (4, 6), _M, 128_000, "2026-02-04T00:00:00Z"),
    _dated("claude-opus-4-5", "20251101", "Claude Opus 4.5", "2025-11-01T00:00:00Z"),
    _dated("claude-haiku-4-5", "20251001", "Claude Haiku 4.5", "2025-10-01T00:00:00Z"),
    _dated("claude-sonnet-4-5", "20250929", "Claude Sonnet 4.5", "2025-09-29T00:00:00Z"),
)


def catalogue(extra: tuple[str, ...]) -> dict[str, Model]:
    """Index the models by id and alias; `extra` ids behave as the newest generation that takes everything."""
    models = {model.id: model for model in MODELS}
    models |= {model.alias: model for model in MODELS if model.alias}
    models |= {name: Model(name, name, (4, 5), _M, 128_000, "2026-11-22T00:00:00Z") for name in extra}
    return models

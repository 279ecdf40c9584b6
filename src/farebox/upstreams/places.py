"""Where conversations are: a bounded memory of which upstream answered one last, so that it goes on there.

The hash by which new conversations are spread would do while nothing changes. After a failure, or a change of weights,
it would send a conversation back to a cold cache, and its thinking blocks to an organisation that did not make them.
"""

from typing import Final, NamedTuple

_MOST: Final = 50_000
"""About 15 MB."""
_KEEPS_S: Final = 3_600.0
"""The longest life of a prompt cache that is not used (Messages API, `ttl`)."""
_BOUND: Final = (b'"signature"', b'"redacted_thinking"', b'"compaction"', b'"file_id"', b'"container"', b'"thread"')
"""What thinking, compaction and references look like in a body. One too many means that a call waits or stays."""


class Place(NamedTuple):
    """Where a conversation is, and since when, by the loop's clock."""

    upstream: str
    organization: str
    at: float


class Places:
    """The places of conversations in this process. The one that was silent longest is forgotten first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._places: dict[bytes, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, conversation: bytes) -> Place | None:
        """Tell where a conversation was answered last."""
        return self._places.get(conversation)

    def keep(self, conversation: bytes, place: Place) -> None:
        """Remember where a conversation has just been answered."""
        self._places.pop(conversation, None)  # so that it goes to the end
        self._places[conversation] = place
        if len(self._places) > self._most:
            del self._places[next(iter(self._places))]


def is_cold(place: Place, now: float) -> bool:
    """Tell whether nothing of a conversation is cached at its place any more."""
    return now - place.at > _KEEPS_S


def is_bound(body: bytes) -> bool:
    """Tell whether a body holds what only the organisation accepts that made it (Messages API, "thinking blocks")."""
    return any(sign in body for sign in _BOUND)

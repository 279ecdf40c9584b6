"""What a new batch asks for, item by item: read, bounded and priced like as many calls, without a copy of any."""

import asyncio
import codecs
import re
from typing import Any, Final

import msgspec

from farebox.accounts.keyring import Caller, KeyRing
from farebox.billing.bound import Demand, output_cost, output_rate
from farebox.billing.pricing import PPM, Catalogue, Model
from farebox.errors import InvalidRequest, PermissionDenied
from farebox.gateway.ask import Asked
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.duplicates import read_object
from farebox.gateway.files.named import files_in
from farebox.gateway.settings import CallLimits, Features
from farebox.gateway.terms import Amounts, Terms, amounts_of, terms_of
from farebox.http.exchange import Headers

_CUSTOM_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_BATCHES: Final = ("speed", "fallbacks")
"""Beside `stream` and `max_tokens: 0` (Messages API, "batches")."""
_BREATH_BYTES: Final = 256 * 1024
_BREATH: Final = 250
"""After so many bytes of items, or so many items, everybody else gets a turn."""
_PIECE_BYTES: Final = 4 * 2**20
_text: Final = msgspec.json.Decoder(str)
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


class _Shape(msgspec.Struct, gc=False):
    custom_id: str
    params: msgspec.Raw


_shapes: Final = msgspec.json.Decoder(list[_Shape])
"""Looked through first: a body of millions of nothings is refused at the first of them."""


class Entry(msgspec.Struct, gc=False):
    """One item; not looked at by the collector of cycles, which 100,000 would keep busy.

    `params` is a view of the batch's body, or the item's own where something had to be changed.
    """

    custom_id: str
    params: bytes | msgspec.Raw
    model: Model
    said: str
    demand: Demand
    nanos: int
    """The most it can cost."""


class Reading:
    """Reads bodies under what is sold and offered at the moment."""

    def __init__(self, keys: KeyRing, features: Features, limits: CallLimits, settings: BatchSettings) -> None:
        self._keys = keys
        self._features = features
        self._limits = limits
        self._settings = settings

    async def read(self, body: bytes, headers: Headers, caller: Caller, catalogue: Catalogue) -> list[Entry]:
        """Read all items; their amounts are still to be worked out. Raises InvalidRequest that names the item."""
        entries: list[Entry] = []
        seen: set[str] = set()
        since_breath = 0
        for place, raw in enumerate(await _requests(body, self._settings.batch_items)):
            custom_id, params = _fields(place, raw)
            if custom_id in seen:
                raise InvalidRequest(f"requests.{place}.custom_id: {custom_id!r} is given twice; each is unique")
            seen.add(custom_id)
            entries.append(self._entry(place, custom_id, params, headers, caller, catalogue))
            since_breath += len(raw)
            if since_breath > _BREATH_BYTES or place % _BREATH == 0:
                since_breath = 0
                await asyncio.sleep(0)
        return entries

    def _entry(
        self, place: int, custom_id: str, params: msgspec.Raw, headers: Headers, caller: Caller, catalogue: Catalogue
    ) -> Entry:
        text = bytes(params)
        try:
            terms = terms_of(text, headers, catalogue, self._features, self._limits)
            _refuse(terms.asked)
            if self._features.files and files_in(terms.asked):
                raise InvalidRequest("file_id: not in a batch here; send the content")
            self._keys.check_model(caller, terms.model.id)
        except (InvalidRequest, PermissionDenied) as error:
            error.message = f"requests.{place} ({custom_id}): {error.message}"
            raise
        kept: bytes | msgspec.Raw = params if terms.body is text else terms.body
        return Entry(custom_id, kept, terms.model, terms.asked.model, terms.demand, _most(terms).most)


def share_ppm(model: Model, percent: int | None) -> int:
    """Give the share of the normal price, in millionths: the upstream's for batches, or the operator's percentage."""
    return model.batch_ppm if percent is None else percent * (PPM // 100)


def most_nanos(entry: Entry, percent: int | None) -> int:
    """Bound what an item can cost in a batch. Searches cost the same as anywhere."""
    searches = entry.demand.web_searches * (entry.model.web_search or 0)
    return -(-(entry.nanos - searches) * share_ppm(entry.model, percent) // PPM) + searches


def output_nanos(entry: Entry, percent: int | None) -> int:
    """Bound what its output alone can cost: what is held is never less, however its input is counted."""
    most = output_cost(output_rate(entry.model, entry.demand), entry.demand.max_tokens)
    return -(-most * share_ppm(entry.model, percent) // PPM)


def _most(terms: Terms) -> Amounts:
    return amounts_of(terms.model, terms.demand, terms.output_rate, stream=False, slice_tokens=0)


async def _requests(body: bytes, most: int) -> list[msgspec.Raw]:
    """Take a batch apart; each look at all of it is as long as anybody else waits."""
    try:
        fields = read_object(body)
        await _check_text(body)
        if "requests" not in fields:
            raise InvalidRequest("requests: field required")
        count = len(_shapes.decode(fields["requests"]))
        await asyncio.sleep(0)
        found = _list.decode(fields["requests"]) if count <= most else []
        await asyncio.sleep(0)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body must be an object with a list of requests: {_place_in(error)}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {_plain(error)}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: see byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    if not found:
        raise InvalidRequest(f"requests: a batch has 1…{most} of them, got {count}")
    return found


async def _check_text(body: bytes) -> None:
    """Raise UnicodeDecodeError for what is no UTF-8, a piece at a time."""
    await asyncio.sleep(0)
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begin in range(0, len(body), _PIECE_BYTES):
            decoder.decode(body[begin : begin + _PIECE_BYTES])
            await asyncio.sleep(0)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        body.decode()  # which tells the place


def _fields(place: int, raw: msgspec.Raw) -> tuple[str, msgspec.Raw]:
    try:
        fields = read_object(raw)
        for name in ("custom_id", "params"):
            if name not in fields:
                raise InvalidRequest(f"requests.{place}.{name}: field required")
        unknown: Any = fields.keys() - {"custom_id", "params"}
        if unknown:
            raise InvalidRequest(f"requests.{place}: has custom_id and params only, not {min(unknown)[:100]!r}")
        custom_id = _text.decode(fields["custom_id"])
    except InvalidRequest as error:
        if not error.message.startswith("requests."):
            error.message = f"requests.{place}: {error.message}"
        raise
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"requests.{place}: {_plain(error)}") from None
    if not _CUSTOM_ID.fullmatch(custom_id):
        raise InvalidRequest(
            f"requests.{place}.custom_id: must be 1…64 of a-z, A-Z, 0-9, _ and -, got {custom_id[:80]!r}"
        )
    return custom_id, fields["params"]


def _refuse(asked: Asked) -> None:
    """Refuse what the API takes in calls and not in batches."""
    if asked.stream:
        raise InvalidRequest("stream: items of a batch cannot be streamed; leave it out")
    for name in _NOT_IN_BATCHES:
        if asked.raw(name) is not None:
            raise InvalidRequest(f"{name}: not in a batch; leave it out")
    if asked.max_tokens == 0:
        raise InvalidRequest("max_tokens: must be at least 1 in a batch")


def _place_in(error: Exception) -> str:
    """Name the item as everywhere else: msgspec says "$[3].custom_id"."""
    return re.sub(r"\$\[(\d+)\]", r"requests.\1", _plain(error)).replace(" - at $", "")


def _plain(error: Exception) -> str:
    return str(error).replace("`", "").removeprefix("JSON is malformed: ")

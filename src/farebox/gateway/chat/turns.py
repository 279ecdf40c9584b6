"""The messages of a chat, put as turns of the Messages API: who speaks, texts, pictures, files, tool calls, results."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w-]+=[^;,]*)*;base64,")
_PICTURES: Final = {"image/jpg": "image/jpeg"}
"""Media types as people write them, and as they are called."""
_SHOWN: Final = 60
NULL: Final = msgspec.Raw(b"null")
Block = dict[str, Any]


class ImageUrl(msgspec.Struct):
    url: str


class File(msgspec.Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None
    file: File | None = None
    cache_control: msgspec.Raw = NULL


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    id: str
    type: str | None = "function"
    function: CalledFunction | None = None


class Turn(msgspec.Struct):
    """A message of a chat. `reasoning_content` and the like are left out: only their signatures would let them in."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: msgspec.Raw = NULL


_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_given(raw: msgspec.Raw) -> bool:
    """Tell whether a field was sent, and is not null."""
    return len(raw) != len(NULL) or bytes(raw) != bytes(NULL)


def to_turns(messages: Sequence[Turn]) -> tuple[list[Block], list[Block]]:
    """Give the system prompt's blocks and the turns. Raises InvalidRequest, naming the message.

    Instructions are gathered in the system prompt, in their order. Who speaks several times in a row speaks one turn.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        if message.role in {"system", "developer"}:
            system += _blocks(at, message.content, only_text=True)
            continue
        role, blocks = _said(at, message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise InvalidRequest("messages: at least one of a user, with content, is required")
    return system, turns


def _said(at: str, message: Turn) -> tuple[str, list[Block]]:
    match message.role:
        case "user":
            return "user", _blocks(at, message.content)
        case "assistant":
            if is_given(message.function_call):
                raise InvalidRequest(f"{at}.function_call: give calls as tool_calls")
            blocks = _blocks(at, message.content, only_text=True)
            if message.refusal:
                blocks.append({"type": "text", "text": message.refusal})
            return "assistant", blocks + [_call(at, call) for call in message.tool_calls or ()]
        case "tool":
            if not message.tool_call_id:
                raise InvalidRequest(f"{at}.tool_call_id: field required")
            result: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
            if blocks := _blocks(at, message.content):
                result["content"] = blocks
            return "user", [result]
        case role:
            raise InvalidRequest(f"{at}.role must be system, developer, user, assistant or tool, got {role[:_SHOWN]!r}")


def _blocks(at: str, content: str | list[Part] | None, *, only_text: bool = False) -> list[Block]:
    """Give a content's blocks. Empty texts are left out: the Messages API refuses them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for number, part in enumerate(content or ()):
        place = f"{at}.content[{number}]"
        if part.type in {"text", "refusal"}:
            text = part.text if part.type == "text" else part.refusal
            if text is None:
                raise InvalidRequest(f"{place}.{part.type}: field required")
            if not text:
                continue
            block: Block = {"type": "text", "text": text}
        elif only_text or part.type not in {"image_url", "file"}:
            kinds = "text" if only_text else "text, image_url and file"
            raise InvalidRequest(f"{place}: parts of type {kinds} are taken here, not {part.type[:_SHOWN]!r}")
        else:
            block = _picture(place, part) if part.type == "image_url" else _document(place, part)
        if is_given(part.cache_control):
            block["cache_control"] = part.cache_control
        blocks.append(block)
    return blocks


def _picture(at: str, part: Part) -> Block:
    url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
    if url is None:
        raise InvalidRequest(f"{at}.image_url: field required")
    if url[:8].lower() == "https://":
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = _embedded(f"{at}.image_url.url", url, "https://… or data:image/…;base64,…")
    if not media_type.startswith("image/"):
        raise InvalidRequest(f"{at}.image_url.url must be a picture, got {media_type[:_SHOWN]!r}")
    media_type = _PICTURES.get(media_type, media_type)
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _document(at: str, part: Part) -> Block:
    file = part.file
    if file is None or file.file_data is None:
        raise InvalidRequest(f"{at}.file.file_data: field required; files by file_id are not kept here")
    media_type, data = _embedded(f"{at}.file.file_data", file.file_data, "data:application/pdf;base64,…")
    if media_type != "application/pdf":
        raise InvalidRequest(f"{at}.file.file_data must be a PDF, got {media_type[:_SHOWN]!r}")
    block: Block = {"type": "document", "source": {"type": "base64", "media_type": media_type, "data": data}}
    if file.filename:
        block["title"] = file.filename
    return block


def _embedded(at: str, url: str, wanted: str) -> tuple[str, str]:
    found = _DATA_URL.match(url[:300])
    if found is None:
        raise InvalidRequest(f"{at} must be {wanted}, got {url[:20]!r}…")
    return found[1].lower(), url[found.end() :]


def _call(at: str, call: ToolCall) -> Block:
    if call.function is None:
        raise InvalidRequest(f"{at}.tool_calls: calls of functions are taken here, not of type {call.type or ''!r:.60}")
    arguments = (call.function.arguments or "").strip() or "{}"
    try:
        _object.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise InvalidRequest(
            f"{at}.tool_calls: the arguments of {call.function.name[:_SHOWN]!r} must be a JSON object"
        ) from None
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.function.name,
        "input": msgspec.Raw(arguments.encode()),
    }

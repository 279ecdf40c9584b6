"""Messages of the Messages API, put as those of Chat Completions: what was said, shown, called and answered."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.upstreams.kinds.chat.manner import Manner

Parts = list[dict[str, Any]]
_ATTRIBUTION: Final = "x-anthropic-billing-header:"
"""How a block of Claude Code's begins that the API takes out before the model reads it."""
_MOST_LEVELS: Final = 3
_THOUGHT: Final = ("thinking", "redacted_thinking")


def to_messages(system: Any, messages: Any, manner: Manner) -> list[dict[str, Any]]:
    """Translate a conversation. Raises InvalidRequest, naming what the server behind the model cannot be told."""
    chat: list[dict[str, Any]] = []
    if system is not None:
        chat += _of_system(system, "system", "system")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: an array of at least one message is required")
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{at} must be an object")
        role, content, where = message.get("role"), message.get("content"), f"messages.{at}.content"
        if role == "user":
            chat += _of_user(content, where, manner)
        elif role == "assistant":
            chat.append(_of_assistant(content, where, manner))
        elif role == "system":
            chat += _of_system(content, where, manner.later_system)
        else:
            raise InvalidRequest(f"messages.{at}.role must be user, assistant or system, got {role!r:.40}")
    if messages[-1]["role"] == "assistant":
        raise InvalidRequest(
            f"messages.{len(messages) - 1}: the server behind this model cannot go on with an answer that was begun; "
            "end with a message of the user's"
        )
    if not chat:
        raise InvalidRequest("messages: at least one message that says something is required")
    return chat


def _of_system(content: Any, where: str, role: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        text = content
    else:
        texts = [_text_of(block, at) for at, block in _blocks(content, where)]
        text = _joined(part for part in texts if not part.startswith(_ATTRIBUTION))
    return [{"role": role, "content": text}] if text else []


def _of_user(content: Any, where: str, manner: Manner) -> list[dict[str, Any]]:
    """Give answers of tools first, each in its own message, as they must follow the calls; then all that was said."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    answers: list[dict[str, Any]] = []
    shown: Parts = []
    said: Parts = []
    for at, block in _blocks(content, where):
        if block.get("type") != "tool_result":
            said += _parts(block, at, manner)
            continue
        parts = list(_parts_of(block.get("content"), f"{at}.content", manner, 1))
        text = _joined(part["text"] for part in parts if part["type"] == "text")
        id_ = _string(block, "tool_use_id", at)
        answer = f"Error: {text}" if block.get("is_error") else text
        answers.append({"role": "tool", "tool_call_id": id_, "content": answer})
        media = [part for part in parts if part["type"] != "text"]
        if media:
            shown += [{"type": "text", "text": f"What the tool answered to {id_}:"}, *media]
    if shown or said:
        answers.append({"role": "user", "content": _simplest(shown + said)})
    elif not answers:
        answers.append({"role": "user", "content": ""})
    return answers


def _of_assistant(content: Any, where: str, manner: Manner) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for at, block in _blocks(content, where):
        kind = block.get("type")
        if kind == "text":
            texts.append(_string(block, "text", at))
        elif kind == "tool_use":
            written = msgspec.json.encode(block.get("input") or {}).decode()
            function = {"name": _string(block, "name", at), "arguments": written}
            calls.append({"id": _string(block, "id", at), "type": "function", "function": function})
        elif kind in _THOUGHT:
            if isinstance(thought := block.get("thinking"), str):
                thoughts.append(thought)
        else:
            raise _unknown(block, at)
    message: dict[str, Any] = {"role": "assistant", "content": _joined(texts) or (None if calls else "")}
    if thoughts and manner.thinking_history == "reasoning_content":
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _parts_of(content: Any, where: str, manner: Manner, depth: int) -> Iterator[dict[str, Any]]:
    if content is None:
        return
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    if depth > _MOST_LEVELS:
        raise InvalidRequest(f"{where}: blocks are nested too deeply; at most {_MOST_LEVELS} levels are read")
    for at, block in _blocks(content, where):
        yield from _parts(block, at, manner, depth)


def _parts(block: Mapping[str, Any], at: str, manner: Manner, depth: int = 0) -> Parts:
    """Give the parts that a block of a user's becomes."""
    match block.get("type"):
        case "text":
            return [{"type": "text", "text": _string(block, "text", at)}]
        case "image":
            return [{"type": "image_url", "image_url": {"url": _image_url(_source(block, at), at)}}]
        case "document":
            return _document(block, at, manner, depth)
        case "search_result":
            found = _joined(part["text"] for part in _parts_of(block.get("content"), at, manner, depth + 1))
            return [{"type": "text", "text": _joined(map(str, (block.get("title"), block.get("source"), found)))}]
        case "tool_reference":
            return [{"type": "text", "text": f"The tool {_string(block, 'tool_name', at)} can be used."}]
        case _:
            raise _unknown(block, at)


def _document(block: Mapping[str, Any], at: str, manner: Manner, depth: int) -> Parts:
    source = _source(block, at)
    texts = [text for field in ("title", "context") if isinstance(text := block.get(field), str)]
    about = [{"type": "text", "text": text} for text in texts]
    match source.get("type"):
        case "text":
            return [*about, {"type": "text", "text": _string(source, "data", f"{at}.source")}]
        case "content":
            return [*about, *_parts_of(source.get("content"), f"{at}.source.content", manner, depth + 1)]
        case "base64" if "pdf" in manner.takes and source.get("media_type") == "application/pdf":
            title = block.get("title")
            data = f"data:application/pdf;base64,{_string(source, 'data', f'{at}.source')}"
            name = title if isinstance(title, str) and title else "document.pdf"
            return [*about, {"type": "file", "file": {"filename": name, "file_data": data}}]
        case "base64":
            raise InvalidRequest(f"{at}: the server behind this model does not read PDFs; send the text")
        case kind:
            raise _unfetched(at, "a document", kind)


def _image_url(source: Mapping[str, Any], at: str) -> str:
    match source.get("type"):
        case "base64":
            return f"data:{_string(source, 'media_type', at)};base64,{_string(source, 'data', at)}"
        case "url":
            return _string(source, "url", at)
        case kind:
            raise _unfetched(at, "an image", kind)


def _source(block: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    source = block.get("source")
    if not isinstance(source, dict):
        raise InvalidRequest(f"{at}.source must be an object")
    return source


def _simplest(parts: Parts) -> str | Parts:
    """Give a plain string where there is only text: every server reads that."""
    if all(part["type"] == "text" for part in parts):
        return _joined(part["text"] for part in parts)
    return parts


def _joined(texts: Any) -> str:
    return "\n\n".join(text for text in texts if text)


def _blocks(content: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of blocks")
    for at, block in enumerate(content):
        if not isinstance(block, dict):
            raise InvalidRequest(f"{where}.{at} must be an object")
        yield f"{where}.{at}", block


def _text_of(block: Mapping[str, Any], at: str) -> str:
    if block.get("type") != "text":
        raise _unknown(block, at)
    return _string(block, "text", at)


def _string(block: Mapping[str, Any], field: str, at: str) -> str:
    value = block.get(field)
    if not isinstance(value, str):
        raise InvalidRequest(f"{at}.{field} must be a string")
    return value


def _unfetched(at: str, what: str, kind: Any) -> InvalidRequest:
    return InvalidRequest(
        f"{at}.source: the server behind this model cannot fetch {what} by {kind!r:.40}; send its content"
    )


def _unknown(block: Mapping[str, Any], at: str) -> InvalidRequest:
    kind = str(block.get("type"))[:60]
    return InvalidRequest(f"{at}: a block of type {kind!r} cannot be put to the server behind this model; leave it out")

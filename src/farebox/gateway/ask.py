"""What a request asks for, as far as money and routing go. It is decoded in part; the copy is never sent anywhere."""

from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.gateway.duplicates import Fields, read_object, refuse_crowd
from farebox.http.surrogates import without_halves


class Asked(msgspec.Struct):
    """The fields of a request that matter to every call; `fields` has them all, undecoded."""

    model: str
    messages: bytes
    max_tokens: int | None
    stream: bool
    speed: str | None
    inference_geo: str | None
    fields: Fields

    def raw(self, name: str) -> bytes | None:
        """Give a field as it was sent; None when it was not, or is null."""
        value = self.fields.get(name)
        if value is None:
            return None
        raw = bytes(value)
        return None if raw == b"null" else raw

    def without_prompt(self) -> "Asked":
        """Give what is short; the fields are views of the body, which would stay in memory for any of them."""
        return msgspec.structs.replace(self, messages=b"", fields={})


_text: Final = msgspec.json.Decoder(str)
_optional_text: Final = msgspec.json.Decoder(str | None)
_count: Final = msgspec.json.Decoder(int)
_optional_number: Final = msgspec.json.Decoder(float | None)
_optional_flag: Final = msgspec.json.Decoder(bool | None)


def read_request(body: bytes) -> Asked:
    """Decode what matters of a Messages request. Raises InvalidRequest in words that name the field."""
    refuse_crowd(body)
    try:
        fields = _fields(body)
        if not body.isascii():
            body.decode()
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body must be a JSON object: {str(error).replace('`', '')}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: see byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    temperature = _value(fields, "temperature", _optional_number)
    if temperature is not None and not 0 <= temperature <= 1:
        raise InvalidRequest(f"temperature must be 0…1, got {temperature:g}")
    return Asked(
        model=_value(fields, "model", _text, required=True),
        messages=_messages(fields),
        max_tokens=_value(fields, "max_tokens", _count),
        stream=bool(_value(fields, "stream", _optional_flag)),
        speed=_value(fields, "speed", _optional_text),
        inference_geo=_value(fields, "inference_geo", _optional_text),
        fields=fields,
    )


def _fields(body: bytes) -> Fields:
    try:
        return read_object(body)
    except msgspec.DecodeError:
        readable = without_halves(body)
        if readable is None:
            raise
        return read_object(readable)


def with_max_tokens(body: bytes, max_tokens: int) -> bytes:
    """Insert max_tokens into a body that has none: the one change ever made to a body."""
    at = body.index(b"{") + 1
    return b'%b"max_tokens":%d,%b' % (body[:at], max_tokens, body[at:])


def _value(fields: Fields, name: str, decoder: msgspec.json.Decoder[Any], *, required: bool = False) -> Any:
    raw = fields.get(name)
    if raw is None:
        if required:
            raise InvalidRequest(f"{name}: field required")
        return None
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{name}: {str(error).replace('`', '')}") from None


def _messages(fields: Fields) -> bytes:
    raw = fields.get("messages")
    if raw is None:
        raise InvalidRequest("messages: field required")
    messages = bytes(raw)
    if messages[:1] != b"[" or not messages[1:-1].strip():
        raise InvalidRequest("messages: an array of at least one message is required")
    return messages

"""Errors of Chat Completions servers: the right type and status, words that help, and nothing of the operator's."""

import json

import pytest

from farebox.upstreams.kinds.chat.faults import FaultDecoder

SET_UP = "the upstream does not serve this model to this gateway"
CASES = {
    "OpenAI, a bad parameter": (
        400,
        b'{"error":{"message":"Invalid value: \'x\'.","type":"invalid_request_error","param":"stop","code":null}}',
        "invalid_request_error",
        "Invalid value: 'x'.",
    ),
    "OpenAI, too long": (
        400,
        (
            b'{"error":{"message":"This model\'s maximum context length is 128000 tokens. However, your messages '
            b"resulted in "
            b'130001 tokens. Please reduce the length of the messages.","type":"invalid_request_error",'
            b'"param":"messages",'
            b'"code":"context_length_exceeded"}}'
        ),
        "invalid_request_error",
        "prompt is too long: 130001 tokens > 128000 maximum",
    ),
    "OpenAI, too long with its output": (
        400,
        (
            b'{"error":{"message":"This model\'s maximum context length is 16385 tokens. However, you requested '
            b"20000 tokens "
            b"(4000 in the messages, 16000 in the completion). Please reduce the length of the messages or "
            b'completion.",'
            b'"type":"invalid_request_error","code":"context_length_exceeded"}}'
        ),
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 4000 + 16000 > 16385",
    ),
    "vLLM, too long with its output": (
        400,
        (
            b'{"error":{"message":"\'max_tokens\' or \'max_completion_tokens\' is too large: 128000. '
            b"This model's maximum context "
            b'length is 32768 tokens and your request has 1000 input tokens (128000 > 32768 - 1000).",'
            b'"type":"BadRequestError",'
            b'"param":null,"code":400}}'
        ),
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 1000 + 128000 > 32768",
    ),
    "older vLLM, too long": (
        400,
        (
            b'{"object":"error","message":"This model\'s maximum context length is 4096 tokens. However, your '
            b"request has 5000 "
            b'input tokens.","type":"BadRequestError","param":null,"code":400}'
        ),
        "invalid_request_error",
        "prompt is too long: 5000 tokens > 4096 maximum",
    ),
    "llama.cpp, too long": (
        400,
        (
            b'{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it",'
            b'"type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":4096}}'
        ),
        "invalid_request_error",
        "prompt is too long: 9000 tokens > 4096 maximum",
    ),
    "LM Studio, too long, in a string": (
        400,
        (
            b'{"error":"Trying to keep the first 5000 tokens when context the overflows. However, the model is '
            b"loaded with "
            b'context length of only 4096 tokens"}'
        ),
        "invalid_request_error",
        "prompt is too long: Trying to keep the first 5000",
    ),
    "FastAPI, what cannot be processed": (
        422,
        b'{"detail":"stop is no list"}',
        "invalid_request_error",
        "stop is no list",
    ),
    "too large": (413, b"<html>413</html>", "request_too_large", "the upstream answered 413"),
    "OpenAI, no such model": (
        404,
        (
            b'{"error":{"message":"The model `gpt-9` does not exist","type":"invalid_request_error",'
            b'"code":"model_not_found"}}'
        ),
        "permission_error",
        SET_UP,
    ),
    "Ollama, no such model": (
        404,
        b'{"error":{"message":"model \\"qwen9\\" not found, try pulling it first","type":"api_error","code":null}}',
        "permission_error",
        SET_UP,
    ),
    "a wrong address": (404, b"<html>nginx</html>", "permission_error", SET_UP),
    "OpenAI, no such key": (
        401,
        b'{"error":{"message":"Incorrect API key sk-12","code":"invalid_api_key"}}',
        "billing_error",
        SET_UP,
    ),
    "OpenAI, no quota": (
        429,
        (
            b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota",'
            b'"code":"insufficient_quota"}}'
        ),
        "billing_error",
        SET_UP,
    ),
    "OpenAI, too fast": (
        429,
        (
            b'{"error":{"message":"Rate limit reached for gpt-5 in organization org-123","type":"tokens",'
            b'"code":"rate_limit_exceeded"}}'
        ),
        "rate_limit_error",
        "the model's provider is at its rate limit",
    ),
    "DeepSeek, no balance": (
        402,
        b'{"error":{"message":"Insufficient Balance","type":"unknown_error"}}',
        "billing_error",
        SET_UP,
    ),
    "OpenRouter, flagged": (
        403,
        (
            b'{"error":{"code":403,"message":"Your chosen model requires moderation and your input was flagged",'
            b'"metadata":{"reasons":["violence"]}}}'
        ),
        "invalid_request_error",
        "your input was flagged",
    ),
    "OpenRouter, forbidden": (403, b'{"error":{"code":403,"message":"Key limit exceeded"}}', "billing_error", SET_UP),
    "llama.cpp, loading": (
        503,
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        "overloaded_error",
        "Loading model",
    ),
    "Google, a key": (
        400,
        b'[{"error":{"code":400,"message":"API key not valid. Please pass one.","status":"INVALID_ARGUMENT"}}]',
        "billing_error",
        SET_UP,
    ),
    "Google, a request": (
        400,
        b'[{"error":{"code":400,"message":"max_tokens is too large","status":"INVALID_ARGUMENT"}}]',
        "invalid_request_error",
        "max_tokens is too large",
    ),
    "a proxy": (502, b"<html>Bad gateway</html>", "api_error", "the upstream answered 502"),
    "nothing": (500, b"", "api_error", "the upstream answered 500"),
    "nonsense": (400, b"[1]", "invalid_request_error", "the upstream answered 400"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_is_put_in_the_envelope(name: str) -> None:
    status, body, kind, words = CASES[name]
    decoder = FaultDecoder(status)
    decoder.feed(body[:5])
    decoder.feed(body[5:])
    said = json.loads(decoder.end())
    assert said["type"] == "error"
    assert said["error"]["type"] == kind
    assert words in said["error"]["message"]
    assert "org-123" not in said["error"]["message"]

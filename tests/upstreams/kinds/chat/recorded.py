"""Answers of Chat Completions servers, in the shapes that documents and sources show; who shows them stands beside."""

import json
from typing import Any, Final

import msgspec


class Recorded(msgspec.Struct, frozen=True):
    """What a server says in a stream, and what that is as a message. `text` is the stream as it stands on the wire."""

    source: str
    text: bytes
    content: list[dict[str, Any]]
    stop_reason: str
    usage: dict[str, int]
    stop_sequence: str | None = None


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """Write a chunk with one choice, or with none when there is no delta."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    head = {"id": "chatcmpl-B9MBs8", "object": "chat.completion.chunk", "created": 1694268190, "model": "theirs"}
    return b"data: %b\n\n" % json.dumps({**head, "choices": choices, **more}).encode()


def call(index: int, arguments: str, id_: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Write a delta with a piece of a tool call."""
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": index, "function": function, **({"id": id_, "type": "function"} if id_ else {})}]}


def counted(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


def used(input_: int, output: int, read: int = 0) -> dict[str, int]:
    """Give the usage of a message."""
    return {
        "input_tokens": input_,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": read,
        "output_tokens": output,
    }


def tool(id_: str, name: str, **input_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": input_}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def thought(words: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": words, "signature": ""}


DONE: Final = b"data: [DONE]\n\n"
_OLLAMA: Final = (
    b'data: {"id":"chatcmpl-508","object":"chat.completion.chunk","created":1,"model":"qwen3","system_fingerprint":'
    b'"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"The user"},'
    b'"finish_reason":null}]}\n\n'
)
STREAMS: Final = {
    "OpenAI, text": Recorded(
        "platform.openai.com, API reference, The chat completion chunk object; stream_options.include_usage",
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None)
        + chunk({"content": "Hel"}, usage=None)
        + chunk({"content": "lo ✓"}, usage=None)
        + chunk({}, "stop", usage=None)
        + chunk(
            usage=counted(
                19,
                10,
                prompt_tokens_details={"cached_tokens": 8, "audio_tokens": 0},
                completion_tokens_details={"reasoning_tokens": 0, "audio_tokens": 0},
            )
        )
        + DONE,
        [text("Hello ✓")],
        "end_turn",
        used(11, 10, 8),
    ),
    "OpenAI, parallel tool calls": Recorded(
        "platform.openai.com, Guides, Function calling, Streaming",
        chunk({"role": "assistant", "content": None})
        + chunk(call(0, "", "call_DdmO9p", "get_weather"))
        + chunk(call(0, '{"location":'))
        + chunk(call(0, '"Paris"}'))
        + chunk(call(1, "", "call_XxLq2w", "get_weather"))
        + chunk(call(1, '{"location":"Bogotá"}'))
        + chunk({}, "tool_calls")
        + chunk(usage=counted(81, 33))
        + DONE,
        [tool("call_DdmO9p", "get_weather", location="Paris"), tool("call_XxLq2w", "get_weather", location="Bogotá")],
        "tool_use",
        used(81, 33),
    ),
    "vLLM, reasoning, usage in every chunk, stop sequence": Recorded(
        "docs.vllm.ai, Reasoning Outputs; OpenAI-compatible server: continuous_usage_stats, stop_reason",
        chunk({"role": "assistant", "content": ""}, usage=counted(12, 0))
        + chunk({"reasoning": "9.8 is", "reasoning_content": "9.8 is"}, usage=counted(12, 3))
        + chunk({"reasoning": " more", "reasoning_content": " more"}, usage=counted(12, 4))
        + chunk({"content": "\n\n"}, usage=counted(12, 5))
        + chunk({"content": "9.8"}, usage=counted(12, 7))
        + b'data: {"id":"chatcmpl-B9MBs8","object":"chat.completion.chunk","created":1,"model":"theirs",'
        b'"choices":[{"index":0,'
        b'"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":"END"}]}\n\n'
        + chunk(usage=counted(12, 8, prompt_tokens_details={"cached_tokens": 4}))
        + DONE,
        [thought("9.8 is more"), text("\n\n9.8")],
        "stop_sequence",
        used(8, 8, 4),
        "END",
    ),
    "llama.cpp, usage in a chunk of its own, timings beside it": Recorded(
        "github.com/ggml-org/llama.cpp, pull request 15444 and issue 16048",
        chunk({"role": "assistant", "content": None})
        + chunk({"content": "ok"})
        + chunk({}, "length")
        + chunk(usage=counted(75, 31), timings={"cache_n": 0, "prompt_n": 75, "prompt_ms": 180.025})
        + DONE,
        [text("ok")],
        "max_tokens",
        used(75, 31),
    ),
    "Ollama, reasoning, a whole call in one chunk, stop for its reason": Recorded(
        "github.com/ollama/ollama, docs OpenAI compatibility, pull request 7963; BerriAI/litellm issue 35663",
        _OLLAMA
        + chunk({"content": "", **call(0, '{"city":"Toronto"}', "call_t9k1", "weather")})
        + chunk({"content": ""}, "stop")
        + chunk(usage=counted(169, 15))
        + DONE,
        [thought("The user"), tool("call_t9k1", "weather", city="Toronto")],
        "tool_use",
        used(169, 15),
    ),
    "older Ollama, two calls under one index": Recorded(
        "github.com/ollama/ollama, issue 7881",
        chunk(call(0, '{"city":"Paris"}', "call_a", "weather"))
        + chunk(call(0, '{"city":"Rome"}', "call_b", "weather"))
        + chunk({}, "tool_calls", usage=counted(9, 9))
        + DONE,
        [tool("call_a", "weather", city="Paris"), tool("call_b", "weather", city="Rome")],
        "tool_use",
        used(9, 9),
    ),
    "DeepSeek, keep-alive comments, usage in the last chunk with its choice": Recorded(
        "api-docs.deepseek.com, Create chat completion; Rate limit: keep-alive",
        b": keep-alive\n\n"
        + chunk({"role": "assistant", "content": None, "reasoning_content": "Let"}, usage=None)
        + chunk({"content": None, "reasoning_content": " me see"}, usage=None)
        + b": keep-alive\n\n"
        + chunk({"content": "Two.", "reasoning_content": None}, usage=None)
        + chunk(
            {"content": "", "reasoning_content": None},
            "stop",
            usage=counted(
                20,
                9,
                prompt_cache_hit_tokens=16,
                prompt_cache_miss_tokens=4,
                completion_tokens_details={"reasoning_tokens": 6},
            ),
        )
        + DONE,
        [thought("Let me see"), text("Two.")],
        "end_turn",
        {**used(4, 9, 16), "output_tokens_details": {"thinking_tokens": 6}},  # type: ignore[dict-item]
    ),
    "OpenRouter, comments, CRLF, reasoning details, native reason, no [DONE]": Recorded(
        "openrouter.ai/docs, Streaming; Reasoning tokens; Usage accounting",
        (
            b": OPENROUTER PROCESSING\n\n"
            + chunk(
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning": "Hm",
                    "reasoning_details": [{"type": "reasoning.text"}],
                },
                provider="Novita",
            )
            + chunk({"content": "Yes"}, provider="Novita")
            + chunk({"content": ""}, "stop", provider="Novita")
            + chunk({"role": "assistant", "content": ""}, usage=counted(194, 2, cost=0.95, is_byok=False))
        ).replace(b"\n", b"\r\n"),
        [thought("Hm"), text("Yes")],
        "end_turn",
        used(194, 2),
    ),
    "xAI, reasoning on top of what was completed": Recorded(
        "docs.x.ai, Reasoning: total_tokens has reasoning_tokens beside completion_tokens",
        chunk({"role": "assistant", "content": "7"})
        + chunk({}, "stop")
        + chunk(
            usage={
                "prompt_tokens": 30,
                "completion_tokens": 1,
                "total_tokens": 331,
                "completion_tokens_details": {"reasoning_tokens": 300},
            }
        )
        + DONE,
        [text("7")],
        "end_turn",
        {**used(30, 301), "output_tokens_details": {"thinking_tokens": 300}},  # type: ignore[dict-item]
    ),
    "Azure, a first chunk about the prompt, content filtered": Recorded(
        "learn.microsoft.com, Azure OpenAI, Content streaming",
        b'data: {"id":"","object":"","created":0,"model":"","choices":[],'
        b'"prompt_filter_results":[{"prompt_index":0}]}\n\n'
        + chunk({"role": "assistant", "content": "I"})
        + chunk({}, "content_filter")
        + chunk(usage=counted(14, 1))
        + DONE,
        [text("I")],
        "refusal",
        used(14, 1),
    ),
    "interleaved calls": Recorded(
        "platform.openai.com: index tells which call a piece belongs to; no order is promised",
        chunk(call(0, "", "call_a", "f"))
        + chunk(call(1, "", "call_b", "f"))
        + chunk(call(0, '{"x":'))
        + chunk(call(1, '{"x":{"y":'))
        + chunk(call(0, "1}"))
        + chunk(call(1, "2}}"))
        + chunk({"content": "after"})
        + chunk({}, "tool_calls", usage=counted(5, 6)),
        [tool("call_a", "f", x=1), tool("call_b", "f", x={"y": 2}), text("after")],
        "tool_use",
        used(5, 6),
    ),
    "pieces without index or id, one line of data in two": Recorded(
        "WHATWG HTML 9.2 (several data lines are one); Gemini's compatible endpoint leaves out index",
        b'data: {"id":"x y","choices":[{"index":0,"delta":\ndata: {"tool_calls":[{"function":{"name":"f",'
        b'"arguments":"{}"}}]}}]}'
        b"\n\n" + chunk({}, "function_call", usage=counted(5, 6)),
        [{"type": "tool_use", "name": "f", "input": {}}],
        "tool_use",
        used(5, 6),
    ),
}
BROKEN: Final = {
    "OpenRouter, an error in the middle": (
        "openrouter.ai/docs, Errors: mid-stream errors",
        chunk({"content": "Hel"})
        + chunk({"content": ""}, "error", error={"code": "server_error", "message": "Provider disconnected"}),
        ("api_error", "Provider disconnected"),
    ),
    "vLLM, an error in the middle": (
        "github.com/vllm-project/vllm, create_streaming_error_response",
        chunk({"content": "Hel"})
        + b'data: {"error": {"message": "out of blocks", "type": "InternalServerError", "param": null, "code": '
        b"500}}\n\n" + DONE,
        ("api_error", "out of blocks"),
    ),
    "older vLLM, an error in the middle": (
        "github.com/vllm-project/vllm, ErrorResponse before 0.10",
        chunk({"content": "Hel"})
        + b'data: {"object": "error", "message": "bad", "type": "BadRequestError", "param": null, "code": 400}\n\n',
        ("api_error", "bad"),
    ),
    "llama.cpp, an error in the middle": (
        "github.com/ggml-org/llama.cpp, server_sent_event with the field error",
        chunk({"content": "Hel"}) + b'error: {"code":400,"message":"the request exceeds the available context size",'
        b'"type":"exceed_context_size_error",'
        b'"n_prompt_tokens":9000,"n_ctx":4096}\n\n',
        ("invalid_request_error", "prompt is too long: 9000 tokens > 4096 maximum"),
    ),
    "OpenAI, a quota that is used up in the middle": (
        "platform.openai.com, Error codes",
        chunk({"content": "Hel"})
        + b'data: {"error":{"message":"You exceeded your current quota, org-123","type":"insufficient_quota",'
        b'"param":null,'
        b'"code":"insufficient_quota"}}\n\n',
        ("billing_error", "the upstream does not serve this model to this gateway"),
    ),
    "DeepSeek, out of resources": (
        "api-docs.deepseek.com, Create chat completion, finish_reason",
        chunk({"content": "Hel"}) + chunk({}, "insufficient_system_resource", usage=counted(1, 1)) + DONE,
        ("api_error", "the upstream ended its answer with finish_reason insufficient_system_resource"),
    ),
    "LM Studio, done without a reason": (
        "github.com/vaadin/flow-components, pull request 9195",
        chunk({"content": "Hel"}) + DONE,
        ("api_error", "the upstream's stream ended without a finish_reason"),
    ),
    "no JSON": ("nobody's", chunk({"content": "Hel"}) + b"data: Hello\n\n", ("api_error", "cannot be read")),
}
"""Streams that break, who shows them, and the error they end with."""

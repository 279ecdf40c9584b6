"""Run by an older SDK, with base URL and key from the environment as its users set them."""

import json
from typing import Any

import anthropic

client = anthropic.Anthropic()
asked: Any = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 300,
    "messages": [{"role": "user", "content": "How are you?"}],
}
message = client.messages.create(**asked, extra_body={"temperature": 0.5})
with client.messages.stream(**asked) as stream:
    streamed = "".join(stream.text_stream)
beta = client.beta.messages.create(**asked, betas=["context-1m-2025-08-07"])
counted = client.messages.count_tokens(model=asked["model"], messages=asked["messages"])
try:
    client.messages.create(**asked | {"model": "gpt-4"})
    error = ""
except anthropic.APIStatusError as raised:
    error = type(raised).__name__
print(
    json.dumps(
        {
            "version": anthropic.__version__,
            "text": message.content[0].text,
            "streamed": streamed,
            "beta": beta.id,
            "counted": counted.input_tokens,
            "error": error,
            "models": [model.id for model in client.models.list()],
        }
    )
)

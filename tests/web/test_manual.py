"""The manual says what the gateway does: its samples run as they stand, its tables and /openapi.json are the code's."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from farebox.billing import bound
from farebox.billing.pricing import Catalogue, PriceList
from farebox.books.prices import Prices
from farebox.clock import US_PER_S
from farebox.config import Config, load_config
from farebox.config.told import offer_of
from farebox.errors import Refusal
from farebox.gateway import wire
from farebox.gateway.routes import Routes
from farebox.gateway.settings import Features
from farebox.money import format_usd
from farebox.payments.deposits import CONFIRMED_WITHIN_US, SIGHT_HOLDS_US
from farebox.payments.intake import QUOTE_GRACE_US
from farebox.payments.rates.rates import APART_PERCENT, QUORUM, USDT_FLOOR_NANOS
from farebox.payments.rates.sources import FRESH_US
from farebox.payments.records import OVER_PERCENT
from farebox.store.protocol import Store
from farebox.web.docs.book import CONTENTS, FEATURES, Book
from farebox.web.docs.endpoint import Endpoint
from farebox.web.docs.endpoints import endpoints
from farebox.web.docs.markdown import LANGUAGES
from farebox.web.offer import Offer
from farebox.web.swap import swaps
from tests.clients.run import ENVS, Ended, charges, check_books, run, wanted
from tests.clients.test_claude_code import CLAUDE
from tests.clients.test_documented import curl
from tests.gateway.batches.bench import ended, make
from tests.house.pages import ROOT, codes, rows, section
from tests.stage import MODEL, Stage, open_stage
from tests.web.browse import browser_of

OPENED: Final = 100 * 10**9
DOCS: Final = ROOT / "docs"


def book(directory: Path | None = None, text: str = "") -> Book:
    """Write the manual of a gateway with this configuration; of one as it comes without any."""
    path = None
    if directory is not None:
        path = directory / "farebox.toml"
        path.write_text(text)
    return Book(offer_in(load_config(path, {})), "Farebox", "")


def offer_in(config: Config) -> Offer:
    return offer_of(config, Prices(cast("Store", None), Catalogue(PriceList(1, config.models))))


OFFER: Final = offer_in(load_config(None, {}))
BOOK: Final = book()


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path) as opened:
        yield opened


# samples


def samples() -> list[Any]:
    """Every sample of the manual and of the home page, each once, by where it is first found."""
    found: dict[tuple[str, str], str] = {}
    for slug, page in BOOK.pages.items():
        for part in page.text.parts:
            for code in (code for box in part.boxes for code in box.codes if code.language):
                found.setdefault((code.language, code.text), f"{slug}-{part.id or 'top'}-{code.language}")
    for swap in swaps(OFFER):
        text = re.sub(r"^claude$", 'claude -p "Hello!"', swap.text, flags=re.MULTILINE)
        found.setdefault((swap.language, text), f"home-{swap.language}")
    return [pytest.param(language, text, id=name) for (language, text), name in found.items()]


def test_every_page_of_the_reference_has_samples_in_every_language() -> None:
    """Save that Claude Code has no command of its own for everything."""
    for slug in (
        "quickstart",
        "authentication",
        "messages",
        "streaming",
        "count-tokens",
        "models",
        "limits",
        "errors",
        "account",
        "quotes",
        "receipts",
        "status-line",
    ):
        found = {code.language for part in BOOK.pages[slug].text.parts for box in part.boxes for code in box.codes}
        assert found >= {"curl", "python", "typescript"}, slug
    assert set(LANGUAGES.values()) == {swap.language for swap in swaps(OFFER)}


@pytest.mark.parametrize(("language", "text"), samples())
async def test_every_sample_runs_as_it_stands(plain: Stage, tmp_path: Path, language: str, text: str) -> None:
    """With the address of this stage; what calls a model is charged, and nothing else is."""
    text = text.replace(OFFER.public_url, f"http://127.0.0.1:{plain.gateway.port}")
    text = text.replace("sk-cc-your-key", plain.alice.key)
    ended = await run_sample(language, text, plain.alice.key, tmp_path)
    assert ended.code == 0, ended
    assert ended.out.strip(), ended
    charged = await check_books(plain, plain.alice, OPENED)
    calls = r"v1/messages \\|\.messages\s*\.(?!count)|^claude |v1/chat/completions \\|\.chat\.completions"
    is_free = not re.search(calls, text, re.MULTILINE)
    assert (charged > 0) is not is_free
    if not is_free:
        assert {kind for kind, _, _ in await charges(plain, plain.alice)} == {"exact"}  # of a batch several


async def run_sample(language: str, text: str, key: str, home: Path) -> Ended:
    env = {"FAREBOX_KEY": key}
    match language:
        case "python":
            return await run(sys.executable, "-c", text, env=env, cwd=home)
        case "typescript":  # it has no types in it, so Node.js runs it as it stands
            (home / "node_modules").symlink_to(wanted(ENVS / "typescript-sdk" / "node_modules"))
            (home / "sample.mjs").write_text(text)
            return await run("node", home / "sample.mjs", env=env, cwd=home)
        case "claude-code":
            path = f"{wanted(CLAUDE).parent}:{os.environ['PATH']}"
            return await run("sh", "-c", text, env={**env, "PATH": path}, cwd=home)
        case _:
            return await curl(text, home, **env)


async def test_the_sample_for_errors_tells_an_empty_balance(plain: Stage, tmp_path: Path) -> None:
    codes_ = {code.language: code.text for part in BOOK.pages["errors"].text.parts for box in part.boxes
              for code in box.codes if code.language}  # fmt: skip
    for language in ("python", "typescript"):
        text = codes_[language].replace(OFFER.base_url, plain.base_url)
        ended = await run_sample(language, text, plain.bob.key, tmp_path)
        assert ended.code == 0, ended
        assert ended.out.startswith("402 req_"), ended
        assert "your free balance is $0.00" in ended.out


# the reference and /openapi.json


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def answers(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method} {path}": operation["responses"] for method, path, operation in operations(described)}


async def test_openapi_describes_every_endpoint_and_no_other(plain: Stage) -> None:
    """The table of routes of the gateway is the one in /openapi.json."""
    described = json.loads((await browser_of(plain).get("/openapi.json")).body)
    assert described["openapi"] == "3.1.0"
    assert described["servers"] == [{"url": plain.gateway.config.base_url}]
    server: Any = plain.gateway._server
    routes = next(one.__self__ for one in vars(server).values() if isinstance(getattr(one, "__self__", None), Routes))
    base = "/api/proxy/v1"
    patterns = {path: methods for path, methods in routes._exact.items() if path.startswith(f"{base}/")}
    patterns |= {
        f"{begin}{{}}{end}": methods for (begin, end), methods in routes._under.items() if begin.startswith(f"{base}/")
    }
    served = {(method, path) for path, methods in patterns.items() for method in methods}
    served = {(method, path) for method, path in served if not path.startswith(f"{base}/v1/")}
    told = {(method, re.sub(r"\{\w+\}", "{}", f"/api/proxy{path}")) for method, path, _ in operations(described)}
    assert told == served


@pytest.mark.parametrize("endpoint", endpoints(OFFER), ids=lambda endpoint: endpoint.slug)
async def test_answers_are_as_described(plain: Stage, endpoint: Endpoint) -> None:
    """The example of each endpoint, sent: the answer fits its schema, and has what the example of an answer has."""
    assert (await plain.ask(plain.alice))[0] == 200
    ((called,),) = await plain.rows("SELECT request_id FROM usage")
    path = endpoint.path.replace("{model_id}", MODEL).replace("{request_id}", f"req_{called.hex()}")
    if "{message_batch_id}" in path:
        path = path.replace("{message_batch_id}", await _ended_batch(plain))
    headers = [(b"x-api-key", plain.alice.key.encode()), (b"content-type", b"application/json")]
    headers.append((b"accept", b"application/json"))
    body = json.dumps(endpoint.example).encode() if endpoint.example is not None else b""
    answer = await plain.client.request(endpoint.method, f"/api/proxy{path}", headers, body, first_byte_s=30)
    data = await answer.read(2**20)
    if endpoint.only_streams:
        assert (answer.status, answer.header(b"content-type")) == (200, b"text/event-stream; charset=utf-8")
        return
    value = json.loads(data)
    assert answer.status == 200, value
    assert misfits(endpoint.answer, value) == []
    assert misfits(endpoint.answer, endpoint.answer_example) == []
    assert misfits({"type": "object", "required": list(endpoint.answer_example)}, value) == []
    if endpoint.slug == "model":
        assert value == endpoint.answer_example


async def _ended_batch(stage: Stage) -> str:
    """Make a batch of one message, and wait until it has ended."""
    made = await make(
        stage, stage.alice, [{"custom_id": "first", "params": {"model": MODEL, "max_tokens": 9, **ASKED}}]
    )
    return str((await ended(stage, stage.alice, made["id"]))["id"])


ASKED: Final = {"messages": [{"role": "user", "content": "Hello"}]}
REFUSED: Final[tuple[tuple[str, Any, int], ...]] = (
    ("POST /v1/messages", {}, 400),
    ("POST /v1/messages", {"model": MODEL, "messages": [], "temperature": 3}, 400),
    ("POST /v1/messages", {"model": "nothing", "messages": [{"role": "user", "content": "Hello"}]}, 400),
    ("POST /v1/messages", {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}, 402),
    ("POST /v1/messages", {"model": MODEL, "messages": [{"role": "user", "content": "a" * (33 << 20)}]}, 413),
    ("POST /v1/messages/count_tokens", {"model": "nothing", "messages": []}, 400),
    ("GET /v1/models?limit=0", None, 400),
    ("GET /v1/models/nothing", None, 404),
    ("POST /v1/messages/quote", {"model": MODEL, "messages": []}, 400),
    ("POST /v1/messages/quote", {"model": MODEL, "messages": [{"role": "user", "content": "a" * (33 << 20)}]}, 413),
    ("GET /v1/usage?by=hour", None, 400),
    ("GET /v1/statusline?session=" + "a" * 201, None, 400),
    (f"GET /v1/requests/req_{0:032x}", None, 404),
    (f"GET /v1/requests/req_{0:032x}/receipt", None, 404),
)


@pytest.mark.parametrize(("what", "body", "status"), REFUSED)
async def test_refusals_are_as_described(plain: Stage, what: str, body: Any, status: int) -> None:
    """Somebody without money, and somebody without a key: status and envelope are those of the description."""
    described = json.loads(BOOK.openapi)
    method, _, target = what.partition(" ")
    responses = answers(described)[
        re.sub("req_0+", "{request_id}", re.sub(r"models/.*", "models/{model_id}", what.partition("?")[0]))
    ]
    for key, expected in ((plain.bob.key, status), ("sk-cc-wrong", 401)):
        answer = await plain.client.request(
            method,
            f"/api/proxy{target}",
            [(b"x-api-key", key.encode())],
            json.dumps(body).encode() if body is not None else b"",
            first_byte_s=30,
        )
        value = json.loads(await answer.read(2**20))
        assert answer.status == expected, value
        assert misfits(described["components"]["schemas"]["Error"], value) == []
        assert responses[str(expected)]["description"].startswith(f"`{value['error']['type']}`")


def test_the_reference_pages_have_what_openapi_has() -> None:
    """Each field of each operation is on its page, as required as it is."""
    page_of = {"messages": "messages", "count_tokens": "count-tokens", "models": "models", "model": "models"}
    page_of |= {"chat_completions": "openai", "quote": "quotes", "receipt": "receipts", "statusline": "status-line"}
    page_of |= dict.fromkeys(("doctor", "doctor_stream"), "claude-code")
    page_of |= dict.fromkeys(("create_batch", "list_batches", "get_batch", "cancel_batch"), "batches")
    page_of |= dict.fromkeys(("delete_batch", "batch_results"), "batches")
    page_of |= dict.fromkeys(("balance", "usage", "key", "request"), "account")
    for _, _, operation in operations(json.loads(BOOK.openapi)):
        source = BOOK.pages[page_of[operation["operationId"]]].source
        fields = {one["name"]: one["required"] for one in operation.get("parameters", [])}
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            fields |= {name: name in schema["required"] for name in schema["properties"]}
        assert fields or operation["operationId"] in {"balance", "key", "doctor", "doctor_stream"}
        for name, required in fields.items():
            entry = re.search(rf"^- `{name}` \*[a-z ]+\*( \*\*required\*\*)?$", source, re.MULTILINE)
            assert entry is not None, name
            assert bool(entry[1]) is required, name


def misfits(schema: dict[str, Any], value: Any, at: str = "$") -> list[str]:
    """Name where a value does not fit a schema, for the words of JSON Schema that are used here."""
    assert schema.keys() <= KNOWN, f"{at}: {schema.keys() - KNOWN}"
    if "anyOf" in schema:
        return [] if any(not misfits(one, value, at) for one in schema["anyOf"]) else [f"{at} fits none of anyOf"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{at} is {value!r}, no {kinds}"]
    wrong = [f"{at} is {value!r}"] if value != schema.get("const", value) else []
    if isinstance(value, int) and value < schema.get("minimum", value):
        wrong.append(f"{at} is {value}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        wrong.append(f"{at} is {value!r}")
    if isinstance(value, dict):
        wrong += [f"{at} has no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in schema.get("properties", {}).items():
            wrong += misfits(inner, value[name], f"{at}.{name}") if name in value else []
    if isinstance(value, list) and "items" in schema:
        wrong += [
            words for number, one in enumerate(value) for words in misfits(schema["items"], one, f"{at}[{number}]")
        ]
    return wrong


KNOWN: Final = {
    *("type", "anyOf", "const", "enum", "required", "properties", "items", "minimum", "pattern"),
    *("examples", "description", "format"),
}
TYPES: Final = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}


def test_a_misfit_would_be_found() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}}}
    assert misfits(schema, {"a": 1}) == []
    values: tuple[Any, ...] = ({}, {"a": -1}, {"a": "1"}, [], None)
    for value in values:
        assert misfits(schema, value)


# what the documents of the repository say


def test_the_table_of_errors_is_that_of_the_code_and_of_the_documents() -> None:
    told = rows(section(BOOK.pages["errors"].source, "What each means"))
    documented = rows(section((DOCS / "billing.md").read_text(), "Errors"))
    assert [(row[0], row[1], row[3]) for row in told] == [
        (row[0], row[1], re.split(r"\W", row[3])[0]) for row in documented
    ]
    assert [row[4] for row in told] == [row[4] for row in documented]
    kinds = set(refusals(Refusal))
    assert {(int(row[0]), codes(row[1])[0]) for row in told} >= {(kind.status, kind.wire_type) for kind in kinds}


def refusals(kind: type[Refusal]) -> Iterator[type[Refusal]]:
    for below in kind.__subclasses__():
        if below.__module__ == "farebox.errors":
            yield below
            yield from refusals(below)


def test_who_pays_is_told_as_in_the_documents() -> None:
    told = rows(section(BOOK.pages["billing"].source, "Who pays"))
    assert told == rows(section((DOCS / "billing.md").read_text(), "Who pays"))


def test_headers_are_told_as_in_the_documents() -> None:
    text = (DOCS / "headers.md").read_text()
    source = section(BOOK.pages["limits"].source, "Headers")
    assert [row[0] for row in rows(source)] == [row[0] for row in rows(section(text, "Added on the way down"))]
    paragraph = re.search(r"\*\*Dropped on the way to the provider:\*\*(.*?)A request that", source, re.DOTALL)
    assert paragraph is not None
    assert set(codes(paragraph[1])) <= {name.decode() for name in wire.REQUEST_HEADERS_DROPPED}
    assert wire.DEFAULT_VERSION.decode() in source


def test_every_switch_has_words_for_what_it_lets_through() -> None:
    assert tuple(FEATURES) == Features.__struct_fields__


def test_the_manual_tells_the_figures_in_force(tmp_path: Path) -> None:
    """Those of the code, and those that an operator has set."""
    billing = " ".join(BOOK.pages["billing"].source.replace("*", "").split())
    for words in (
        f"Pictures count as {bound.IMAGE_TOKENS:,} tokens each",
        f"as a whole context window of {bound.CONTEXT_TOKENS:,}",
        f"Tools add {bound.SERVER_PROMPT_TOKENS:,}, a built-in tool {bound.TOOLSET_TOKENS:,} more",
        "a slice of 4,096 tokens, or as much of it as your balance has, at least 512",
        "up to 10 seconds",
        "at $1.50 and $7.50 per million, cost $0.0010035",
    ):
        assert words in billing
    limits = "slice_tokens = 800\ndrain_s = 0\ndefault_max_tokens = 99\ncount_tokens_per_minute = 7\nbody_bytes = 2048"
    site = '[site]\nsign_up = "closed"\n[keys]\nprefix = "otter-"\n[features]\nweb_search = false\nmcp = true'
    own = book(tmp_path, f"[limits]\n{limits}\n{site}\n")
    whole = " ".join(own.whole.split())
    for words in (
        "a slice of 800 tokens, or as much of it as your balance has, at least 100",
        "The provider is told to stop at once",
        "Left out, it is 99",
        "its own limit is 7 a minute",
        "at most 2 KiB",
        "begin with `otter-`",
        "- tools `web_search_*`",
        "Ask the operator for an account",
    ):
        assert words in whole, words
    for words in ("up to 10 seconds", "sk-cc-", "mcp_servers", "must say `max_uses`", "/signup"):
        assert words not in whole, words


def test_the_manual_tells_by_which_rule_payments_are_credited(tmp_path: Path) -> None:
    """With the figures of the code, and those that an operator has set."""
    floor = format_usd(USDT_FLOOR_NANOS)
    assert (QUORUM, FRESH_US, QUOTE_GRACE_US) == (2, 120 * US_PER_S, 300 * US_PER_S)
    assert (CONFIRMED_WITHIN_US, SIGHT_HOLDS_US) == (6 * 3600 * US_PER_S, 3600 * US_PER_S)
    told = (
        "at least two exchanges",
        "Prices older than two minutes do not count",
        f"more than {APART_PERCENT} % away",
        f"below {floor} none is quoted",
        f"up to {OVER_PERCENT} % of the coins",
        f"they share those {OVER_PERCENT} %",
        "Five minutes after the end of a quote",
    )
    by_default = " ".join(BOOK.pages["top-ups"].source.split())
    for words in (*told, "at that moment, less 1 %.", "20 minutes after it was made"):
        assert words in by_default, words
    own = book(tmp_path, "[payments]\nspread_percent = 0\nquote_minutes = 15\n")
    page = " ".join(own.pages["top-ups"].source.split())
    for words in (*told, "at that moment.", "15 minutes after it was made"):
        assert words in page, words
    dear = book(tmp_path, "[payments]\nspread_percent = 2.5\n").pages["top-ups"].source
    assert "less 2.5 %." in dear


def test_every_page_is_in_the_contents() -> None:
    there = {path.stem for path in (ROOT / "src/farebox/web/docs/text").glob("*.md")}
    assert there == {slug for slugs in CONTENTS.values() for slug in slugs}
    for page in BOOK.pages.values():
        assert page.text.summary.endswith("."), page.slug
        assert len(page.text.summary) < 250, page.slug

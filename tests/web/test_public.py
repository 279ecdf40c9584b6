"""The public site through the real server: valid and guarded pages, links that lead somewhere, figures as in the
catalogue, prices as they are charged."""

import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from farebox.billing.pricing import Catalogue, Model, PriceList
from farebox.billing.usage import Line, Usage
from farebox.config import load_config
from farebox.errors import ConfigError
from farebox.money import NANOS_PER_USD
from farebox.web.docs.book import CONTENTS
from farebox.web.pages import write_cost, write_price
from farebox.web.prices import ORDERS, estimate, in_order
from tests.stage import Stage, config_text, open_stage
from tests.web.browse import Browser, Page, browser_of

MANUAL: Final = [f"/docs/{slug}" for slugs in CONTENTS.values() for slug in slugs]
PAGES: Final = ["/", "/models", "/status", "/terms", "/privacy", "/refunds", *MANUAL]
MACHINES: Final = ["/llms.txt", "/llms-full.txt", "/openapi.json", "/robots.txt", *(f"{page}.md" for page in MANUAL)]
FIRST_LOAD_BYTES: Final = 30_000
SITE: Final = """
[site]
name = "Otter & Sons"
support_email = "help@otters.example"
terms = "terms.md"
privacy = "texts/privacy.md"
refunds = "refunds.md"
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway whose operator has written texts of their own."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "terms.md").write_text(
        "# House rules\n\nBe kind. <script>alert(1)</script>\n\n# Money\n\n| a |\n|--:|\n| 1 |\n"
    )
    (tmp_path / "texts" / "privacy.md").write_text("We keep **counts** only.\n")
    (tmp_path / "refunds.md").write_text("# Refunds\n\nAsk.\n")
    async with open_stage(tmp_path, SITE) as opened:
        yield opened


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway as it comes."""
    async with open_stage(tmp_path) as opened:
        yield opened


# pages


async def test_every_page_is_valid_and_guarded(site: Stage) -> None:
    browser = browser_of(site)
    for path in [*PAGES, *(f"{page}?lang=python" for page in ("/", *MANUAL)), "/models?sort=-input&model=x&input=abc"]:
        page = await browser.get(path)
        assert (path, page.status) == (path, 200)
        assert page.faults() == [], path
        assert "default-src 'none'" in page.header("content-security-policy"), path
        assert len(list(page.find("h1"))) == len(list(page.find("main"))) == 1, path
        assert "Otter & Sons" in page.words or "Otter &amp; Sons" in page.text, path


async def test_every_link_leads_somewhere(site: Stage) -> None:
    """From every public page, to pages that are there and to places that are on them. Sign-in counts as there."""
    browser = browser_of(site)
    seen: dict[str, Page] = {}
    broken = []
    for path in PAGES:
        for link in (await browser.get(path)).links():
            if link.startswith(("mailto:", "https://")):
                continue
            target, _, place = link.partition("#")
            address = target if target.startswith("/") else path + target
            if address not in seen:
                seen[address] = await browser.get(address)
            found = seen[address]
            there = not place or any(one.get("id") == place for one in found.tree.iter())
            broken += [] if found.status == 200 and there else [f"{path}: {link}"]
    assert len(seen) > len(PAGES)
    assert not broken


async def test_links_in_the_twins_lead_somewhere(site: Stage) -> None:
    """Machines read the same pages as Markdown; the list of them names addresses that work."""
    browser = browser_of(site)
    public_url = site.gateway.config.public_url
    index = (await browser.get("/llms.txt")).text
    listed = re.findall(r"\]\((\S+)\)", index)
    assert [url.removeprefix(public_url) for url in listed] == [*(f"{page}.md" for page in MANUAL), *MACHINES[1:3]]
    whole = (await browser.get("/llms-full.txt")).text
    for path in MANUAL:
        twin = await browser.get(f"{path}.md")
        assert twin.header("content-type") == "text/markdown; charset=utf-8"
        assert twin.text.rstrip() in whole
        assert "{{" not in twin.text
        assert "{%" not in twin.text
        for target in re.findall(r"\]\((/[^)#]*)", twin.text):
            assert (await browser.get(target)).status == 200, f"{path}.md: {target}"


async def test_a_first_visit_is_light(site: Stage) -> None:
    """Page, stylesheet, scripts and icon of any public page, as they cross the wire."""
    browser = browser_of(site)
    packed = {"accept-encoding": "gzip"}
    for path in PAGES:
        page = await browser.get(path, packed)
        assert "accept-encoding" in page.header("vary").lower(), path
        assert page.header("content-encoding") == "gzip", path
        files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text))
        assert len(files) >= 3
        size = len(page.body) + sum([len((await browser.get(file, packed)).body) for file in files])
        assert size < FIRST_LOAD_BYTES, f"{path}: {size}"


async def test_files_for_machines(site: Stage) -> None:
    browser = browser_of(site)
    for path in MACHINES:
        answer = await browser.get(path)
        assert (path, answer.status) == (path, 200)
    assert (await browser.get("/favicon.ico")).header("content-type") == "image/svg+xml"
    assert "Disallow: /dashboard" in (await browser.get("/robots.txt")).text
    for path in ("/docs/nothing", "/docs/nothing.md", "/docs/../quickstart", "/docs/_hello.py.txt"):
        assert (await browser.get(path)).status == 404, path
    assert (await browser.get("/docs?lang=python")).path == "/docs/quickstart?lang=python"


# the operator's own texts


async def test_the_operators_texts_are_shown_and_linked(site: Stage) -> None:
    browser = browser_of(site)
    terms = await browser.get("/terms")
    assert [one.text for one in terms.find("h1")] == ["House rules"]
    assert "Be kind. <script>alert(1)</script>" in terms.words
    assert not [one for one in terms.find("script") if not one.get("src")]
    assert "Money" in [one.text for one in terms.find("h2")]
    privacy = await browser.get("/privacy")
    assert [one.text for one in privacy.find("h1")] == ["Privacy"]
    assert "We keep counts only." in privacy.words
    assert {"/terms", "/privacy", "/refunds"} <= set((await browser.get("/login")).links())


async def test_without_texts_there_are_no_pages_and_no_links(plain: Stage) -> None:
    browser = browser_of(plain)
    for path in ("/terms", "/privacy", "/refunds"):
        assert (await browser.get(path)).status == 404
        assert path not in (await browser.get("/")).links()
        assert path not in (await browser.get("/docs/top-ups")).links()


def test_a_text_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_text(config_text(tmp_path, '[site]\nterms = "nowhere.md"\n'))
    with pytest.raises(ConfigError, match=r'site\.terms is the file "nowhere\.md", which cannot be read'):
        load_config(path, {})


# figures


def told_price(model: Model, kind: str) -> str:
    """A cell of the price table: what is paid, then what the list says where that is another price."""
    sell, listed = (write_price(getattr(rates, kind)) for rates in (model.rates.sell, model.rates.list))
    return sell if sell == listed else f"{sell} instead of {listed}"


async def test_the_price_table_tells_the_catalogue(plain: Stage) -> None:
    """Every model, in every order, with its own figures; and the home page has the first of them."""
    browser = browser_of(plain)
    models = plain.gateway.config.models
    kinds = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
    for order in ("", *ORDERS, *(f"-{name}" for name in ORDERS), "nonsense"):
        page = await browser.get(f"/models?sort={order}")
        rows = [row[1:] for row in page.rows("Prices") if len(row) == 3 + len(kinds)]
        expected = in_order(models, order)
        assert rows == [
            [f"{one.context_tokens:,}", f"{one.max_output_tokens:,}", *(told_price(one, kind) for kind in kinds)]
            for one in expected
        ], order
        assert [one.get("id") for one in page.find("tbody") if one.get("id")] == [one.id for one in expected]
    home = (await browser.get("/")).rows("Prices")
    assert [row[2:] for row in home] == [[told_price(one, kind) for kind in kinds[:2]] for one in models[:4]]
    docs = (await browser.get("/docs/models")).rows("Overview")
    assert docs == [
        [one.id, f"{one.context_tokens:,}", *(write_price(getattr(one.rates.sell, kind)) for kind in kinds[:2])]
        for one in models
    ]


async def test_other_prices_stand_below_their_model(plain: Stage) -> None:
    """Long prompts and fast mode, in the columns of the table; searches and US-only inference in words."""
    page = await browser_of(plain).get("/models")
    others = [row for row in page.rows("Prices") if len(row) == 6]
    expected = []
    for model in plain.gateway.config.models:
        expected += [
            [f"prompts of more than {band.above_tokens:,} tokens", write_price(band.rates.sell.input)]
            for band in model.bands
        ]
        expected += [['fast mode, speed: "fast"', write_price(model.fast_rates.sell.input)]] if model.fast_rates else []
    assert expected
    assert [[row[0], row[1].partition(" ")[0]] for row in others] == expected
    words = page.words
    for model in plain.gateway.config.models:
        if model.web_search is not None:
            assert f"{model.id} " in words
            assert f"web search {write_cost(model.web_search)}" in words


async def test_plans_are_told_as_configured(plain: Stage) -> None:
    browser = browser_of(plain)
    home, docs = (await browser.get("/")).rows("Plans"), (await browser.get("/docs/limits")).rows("Plans")
    figures = [
        [f"{plan.requests_per_minute:,}", f"{plan.tokens_per_minute:,}", f"{plan.concurrent:,}"]
        for plan in plain.gateway.config.plans
    ]
    assert [row[1:4] for row in home] == [row[1:4] for row in docs] == figures
    assert [row[0].lower() for row in home] == [row[0] for row in docs] == plain.gateway.config.plans.names()


async def test_the_calculator_says_what_a_call_is_charged(plain: Stage) -> None:
    """A real call's own usage, typed into the form, costs what was charged for it."""
    status, _ = await plain.ask(plain.alice, "Hello, otters")
    assert status == 200
    ((model, tokens_in, tokens_out, charged),) = await plain.rows(
        "SELECT model, input_tokens, output_tokens, charged_nanos FROM usage"
    )
    browser = browser_of(plain)
    page = await browser.submit(
        await browser.get("/models"), "/models", model=model, input=f"{tokens_in:,}", output=str(tokens_out)
    )
    assert [one.text for one in page.find("p", class_="sum")] == [write_cost(charged)]


async def test_the_calculator_knows_bands_fast_mode_searches_and_many_calls(plain: Stage) -> None:
    models = plain.gateway.config.models
    catalogue = Catalogue(PriceList(1, models))
    long = next(model for model in models if model.bands)
    fast = next(model for model in models if model.fast_rates)
    above = long.bands[0].above_tokens + 1
    query = {"model": long.id, "input": str(above), "output": "3", "calls": "7", "us": "on", "searches": "2"}
    found = estimate(query, catalogue, models[0])
    rates = long.bands[0].rates.sell
    exact = (above * rates.input + 3 * rates.output) * Decimal(long.geo_us_ppm) / 10**12 + 2 * (long.web_search or 0)
    assert found.call_nanos == -(-exact // 1)
    assert found.nanos == 7 * found.call_nanos
    query = {"model": fast.id, "input": "1000", "output": "0", "cache_read": "11", "fast": "on"}
    found = estimate(query, catalogue, models[0])
    assert found.fast
    usage = Usage((Line(fast.id, input=1000, cache_read=11, fast=True),))
    assert found.call_nanos == catalogue.price(usage, fast).cost_nanos > 0
    slow = next(model for model in models if not model.fast_rates)
    assert not estimate({"model": slow.id, "fast": "on"}, catalogue, models[0]).fast


@pytest.mark.parametrize("text", ["-1", "1.5", "abc", "1e9", "9" * 40, "٣", "0x10", "1000000001"])
async def test_the_calculator_marks_what_it_cannot_read(plain: Stage, text: str) -> None:
    models = plain.gateway.config.models
    found = estimate({"input": text}, Catalogue(PriceList(1, models)), models[0])
    assert found.faults == ("input",)
    assert found.fields["input"] == 1000
    browser = browser_of(plain)
    page = await browser.submit(await browser.get("/models"), "/models", input=text)
    assert page.faults() == []
    assert [one.get("name") for one in page.find("input", aria_invalid="true")] == ["input"]


# status


async def test_status_tells_whether_models_are_served(tmp_path: Path) -> None:
    """Served by all, by some, by none of the upstreams for it; as calls fare, and without naming an upstream."""
    upstreams = "\n".join(
        f'[[upstreams]]\nname = "secret-{name}"\nkind = "simulator"\n{models}'
        for name, models in (("one", ""), ("two", 'models = ["claude-opus-4-6"]'))
    )
    async with open_stage(tmp_path, upstreams=upstreams) as stage:
        browser = browser_of(stage)
        assert stage.gateway.pool is not None
        one, two = stage.gateway.pool.upstreams
        page = await browser.get("/status")
        assert {row[1] for row in page.rows("Models")} == {"served"}
        assert "All models are served" in page.words
        two.rests_until = float("inf")
        told = await states(browser)
        assert told.pop("claude-opus-4-6") == "served, by fewer providers than usual"
        assert set(told.values()) == {"served"}
        one.rests_until = float("inf")
        told = await states(browser)
        assert set(told.values()) == {"not served"}
        page = await browser.get("/status")
        assert "No model is served" in page.words
        assert "secret" not in page.text


async def states(browser: Browser) -> dict[str, str]:
    rows = (await browser.get("/status")).rows("Models")
    return {row[0].split()[-1]: row[1] for row in rows}


# samples


async def test_languages_are_chosen_by_link(plain: Stage) -> None:
    """Without a script: the link of a tab shows its code everywhere, and goes on to the next page."""
    browser = browser_of(plain)
    for path, first in (("/", "claude-code"), ("/docs/quickstart", "curl")):
        page = await browser.get(path)
        assert shown(page) == {first}, path
        for tab in list(page.find("a", role="tab")):
            chosen = await browser.get(path + (tab.get("href") or "").partition("#")[0])
            assert shown(chosen) == {tab.get("data-lang")}, path
    page = await browser.get("/docs/quickstart?lang=python")
    assert "/docs/streaming?lang=python" in page.links()
    assert shown(await browser.get("/docs/quickstart?lang=%3Cscript%3E")) == {"curl"}


def shown(page: Page) -> set[str | None]:
    open_panels = {one.get("id") for one in page.find("div", role="tabpanel") if one.get("hidden") is None}
    selected = list(page.find("a", role="tab", aria_selected="true"))
    assert {tab.get("aria-controls") for tab in selected} == open_panels
    return {tab.get("data-lang") for tab in selected}


async def test_every_sample_has_this_servers_address(plain: Stage) -> None:
    """And none has another one, save that of the API which the home page tells to leave."""
    browser = browser_of(plain)
    base_url = plain.gateway.config.base_url
    for path in ["/", *MANUAL]:
        page = await browser.get(path)
        code = " ".join("".join(one.itertext()) for one in page.find("pre"))
        addresses = set(re.findall(r"https?://[^/\s\"']+", code)) - {"https://api.anthropic.com"}
        assert addresses <= {plain.gateway.config.public_url}, path
        assert ("/api/proxy" in code) <= (base_url in code), path


def test_amounts_are_written_exactly() -> None:
    for nanos, text in ((1, "$0.000000001"), (NANOS_PER_USD, "$1.00"), (1_003_500, "$0.0010035"), (0, "$0.00")):
        assert write_cost(nanos) == text
    assert json.dumps(write_cost(-5)) == '"-$0.000000005"'

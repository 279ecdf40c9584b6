"""The configuration: what it says by default, what it refuses and in which words, and that none of it leaks."""

import json
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farebox.billing.pricing import PPM, check_names
from farebox.config import Config, default_offer, load_config
from farebox.config.load import SINGLE_TABLES, TABLE_LISTS, variable_name
from farebox.config.offers import BandTable, PriceTable
from farebox.errors import ConfigError
from farebox.money import NANOS_PER_USD
from farebox.secret import Secret
from tests.payments.wallets import ETHER

EXAMPLE = resources.files("farebox.config").joinpath("example.toml").read_text("utf-8")
KEY = {"ANTHROPIC_API_KEY": "sk-ant-canary-4711"}
UPSTREAM = '[[upstreams]]\nname = "a"\nkind = "simulator"\n'


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = tmp_path / "farebox.toml"
    path.write_text(text)
    return load_config(path, environ or {})


def refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """What is said about a configuration that must be refused, line by line."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ)
    return str(caught.value).splitlines()


def uncommented() -> str:
    """The example with every default setting switched on."""
    return "\n".join(
        line[1:] if line[:1] == "#" and line[1:2] not in {"", " "} else line for line in EXAMPLE.splitlines()
    )


def in_toml(value: Any) -> str:
    """Write texts, numbers, and lists of them or of tables, as the file has them."""
    if isinstance(value, tuple):
        return f"[{', '.join(in_toml(one) for one in value)}]"
    if isinstance(value, msgspec.Struct):
        told = {name: in_toml(one) for name, one in msgspec.structs.asdict(value).items() if one is not None}
        return f"{{ {', '.join(f'{name} = {one}' for name, one in told.items())} }}"
    return json.dumps(value)


def load_uncommented(tmp_path: Path) -> Config:
    """Load it, with the files beside it that it names."""
    (tmp_path / "ethereum-rpc").write_text("https://rpc.example/v1/a-key")
    (tmp_path / "evm.xpub").write_text(ETHER)
    return load(tmp_path, uncommented(), {**KEY, "ANTHROPIC_ADMIN_KEY": "sk-ant-admin01-x"})


def test_the_example_loads_as_it_is_printed(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE, KEY)
    assert [upstream.base_url for upstream in config.upstreams] == ["https://api.anthropic.com"]
    assert config.upstreams[0].api_key.reveal() == KEY["ANTHROPIC_API_KEY"]


def test_every_default_that_the_example_shows_is_the_default(tmp_path: Path) -> None:
    shown, real = load_uncommented(tmp_path), load(tmp_path, UPSTREAM)
    for name in (*SINGLE_TABLES, "server_limits"):
        assert getattr(shown, name) == getattr(real, name), name
    assert shown.plans.default == real.plans.default
    sonnet = next(model for model in default_offer()[0] if model.id == "claude-sonnet-4-6")
    assert shown.models[0].rates == sonnet.rates
    unsaid = dict.fromkeys(("connect_s", "first_byte_s", "stall_s", "batches"))
    plain = msgspec.structs.replace(shown.upstreams[0], **unsaid)
    assert plain == load(tmp_path, EXAMPLE, KEY).upstreams[0]


def test_the_example_documents_every_setting_there_is() -> None:
    text = uncommented()
    sections = {part.partition("]")[0].strip("[ "): part for part in ("\n" + text).split("\n[")}
    for name, types in SINGLE_TABLES.items():
        for field in (field for type_ in types for field in type_.__struct_fields__):
            assert f"\n{field} = " in sections[name], f"[{name}] {field}"
    for name, type_ in TABLE_LISTS.items():
        for field in type_.__struct_fields__:
            if field not in {"sell", "fast_sell", "speed"}:  # explained beside what they cannot stand with
                assert f"\n{field} = " in sections[name], f"[[{name}]] {field}"
    assert "speed = " in sections["upstreams"]
    for field in (*PriceTable.__struct_fields__, *BandTable.__struct_fields__, "sell = {", "fast_sell"):
        assert field in sections["models"], field


CASES = {
    "unknown table": ("[serve]\nport = 1", "farebox.toml:1: serve is not a setting; did you mean server?"),
    "proxy that is none": ('[server]\nproxies = "10.0.0.0/8 10.0.0.300"', "farebox.toml:2: server.proxies is wrong"),
    "unknown key": ("[server]\n\nprot = 1", "farebox.toml:3: server.prot is not a setting; did you mean port?"),
    "key of another table": ("[server]\ndrain_s = 1", "drain_s belongs in [limits]"),
    "no TOML": ("[server]\nport = = 1", "farebox.toml:2: is not TOML"),
    "cut off": ("[server]\nhost = '", "farebox.toml:2: is not TOML"),
    "text for a number": ('[server]\nport = "x"', 'server.port is "x"; it must be a whole number from 0 to 65535'),
    "number too large": ("[server]\nport = 65536", "server.port is 65536; it must be a whole number from 0 to 65535"),
    "true for a number": (
        "[limits]\nattempts = true",
        "limits.attempts is true; it must be a whole number from 1 to 10",
    ),
    "fraction of a count": ("[limits]\nattempts = 1.5", "limits.attempts is 1.5; it must be a whole number"),
    "zero seconds": ("[limits]\nstall_s = 0", "limits.stall_s is 0; it must be a number above 0"),
    "infinite seconds": ("[limits]\nstall_s = inf", "limits.stall_s is Infinity; it must be a number above 0"),
    "seconds of a connection": ("[limits]\nbody_idle_s = -1", "limits.body_idle_s is -1; it must be a number above 0"),
    "number for a switch": ("[features]\nthreads = 1", "features.threads is 1; it must be true or false"),
    "unknown choice": ('[log]\nformat = "xml"', 'log.format is "xml"; it must be "console" or "json"'),
    "table for a text": ("[site.name]\na = 1", "site.name is a table; it must be a text in quotes"),
    "text for a table": ('server = "x"', 'server is "x"; it must be a table, written [server]'),
    "host with a space": ('[server]\nhost = "a b"', "server.host is"),
    "public url with a path": ('[server]\npublic_url = "https://a.example/b"', "scheme and host without a path"),
    "base path with v1": ('[server]\nbase_path = "/api/v1"', "without a slash at its end and without /v1"),
    "base path with a slash": ('[server]\nbase_path = "/api/"', "without a slash at its end"),
    "metrics without a port": ('[server]\nmetrics = "0.0.0.0"', '"host:port" or "off"'),
    "two workers": ("[server]\nworkers = 2", "with SQLite one process writes the books, by design"),
    "prefix": ('[keys]\nprefix = "SK "', "2 to 16 of a-z"),
    "email": ('[site]\nsupport_email = "help"', "an address such as"),
    "postgres without a database": ('[database]\nurl = "postgresql://h"', "names no database"),
    "a spool that is no text": ("[database]\nspool = 5", "database.spool"),
    "a lease too short": ("[database]\nlease_s = 0.1", "0.5"),
    "bare file": ('[database]\nurl = "farebox.db"', 'it must be "sqlite:///farebox.db"'),
    "in memory": ('[database]\nurl = "sqlite:///:memory:"', "the books must outlive the process"),
    "sign-up by favour": ('[site]\nsign_up = "friends"', '"closed" or "invitation" or "open"'),
    "a provider of no kind": ('[[sign_in]]\nname = "x"\nclient_id = "y"', "sign_in[1].kind is missing"),
    "a provider without an issuer": (
        '[[sign_in]]\nname = "x"\nkind = "oidc"\nclient_id = "y"',
        'sign_in[1].issuer is missing; kind "oidc" needs it',
    ),
    "a provider by plain http": (
        '[[sign_in]]\nname = "x"\nkind = "oidc"\nclient_id = "y"\nissuer = "http://login.example"',
        "it must begin with https://",
    ),
    "a provider twice": (
        2 * '[[sign_in]]\nname = "x"\nkind = "github"\nclient_id = "y"\n',
        'sign_in[2].name is "x" a second time',
    ),
    "a provider's name with a space": (
        '[[sign_in]]\nname = "my own"\nkind = "github"\nclient_id = "y"',
        "up to 31 of a-z, 0-9 and -, a letter first",
    ),
    "single upstream": ('[upstreams]\nname = "a"', "upstreams must be written [[upstreams]]"),
    "upstream without kind": ('[[upstreams]]\nname = "a"', 'upstreams[1].kind is missing; it must be "anthropic" or'),
    "upstream without key": (
        '[[upstreams]]\nname = "a"\nkind = "anthropic"',
        "farebox.toml:1: upstreams[1].api_key is missing",
    ),
    "variable not set": (
        '[[upstreams]]\nname = "a"\nkind = "anthropic"\napi_key = "env:NOPE"',
        "farebox.toml:4: upstreams[1].api_key takes the environment variable NOPE, which is not set",
    ),
    "secret file not there": (
        '[[upstreams]]\nname = "a"\nkind = "anthropic"\napi_key = "file:nope"',
        "takes the file nope, which cannot be read: No such file or directory",
    ),
    "base url with v1": (UPSTREAM + 'base_url = "https://x.example/v1"', "leave out the /v1 at its end"),
    "base url without scheme": (UPSTREAM + 'base_url = "x.example"', "it must be a URL"),
    "base url with password": (
        UPSTREAM + 'base_url = "https://u:p@x.example"',
        "holds a password; say api_key instead",
    ),
    "two upstreams of one name": (UPSTREAM * 2, 'farebox.toml:5: upstreams[2].name is "a" a second time'),
    "model that is not sold": (UPSTREAM + 'models = ["claude-opus-4-7x"]', "did you mean claude-opus-4-7?"),
    "negative speed": (UPSTREAM + "speed = -1", "speed is -1; it must be a number of at least 0"),
    "speed of a server elsewhere": (
        UPSTREAM + 'base_url = "http://127.0.0.1:9"\nspeed = 0',
        "speed is for upstreams of kind",
    ),
    "negative weight": (UPSTREAM + "weight = -1", "weight is -1; it must be a whole number from 0 to 1000"),
    "one chain by two names": (
        "".join(f'[[evm]]\nname = "{name}"\nchain_id = 1\nrpc = "http://a.example"\nkey = "x"\n' for name in "ab"),
        "is 1 a second time: its payments would count twice",
    ),
    "a spread that is no number": ("[payments]\nspread_percent = nan", "spread_percent"),
    "a spread without end": ("[payments]\nspread_percent = inf", "spread_percent"),
    "a spread of more than there is": ("[payments]\nspread_percent = 20.01", "it must be from 0 to 20"),
    "rates of one source": ('[payments]\nrates = ["kraken"]', "rates needs 2 sources at least"),
    "rates of one source and Binance": (
        '[payments]\nrates = ["kraken", "binance"]',
        "what Binance says in USDT is worth what the others say",
    ),
    "rates of a stranger": ('[payments]\nrates = ["kraken", "mtgox"]', 'it must be "binance" or "bitstamp"'),
    "rates from nowhere": ('[payments]\nrates_url = "localhost:9"', "rates_url must be a URL such as"),
    "rates by a query": ('[payments]\nrates_url = "http://127.0.0.1:9/?q="', "without password or query"),
    "no models": ("models = []", "must be written [[models]], once for each of them, and at least once"),
    "plan in capitals": (
        '[[plans]]\nname = "Free"\nrequests_per_minute = 1\ntokens_per_minute = 1\nconcurrent = 1',
        'plans[1].name is "Free"; it must be a name in lower case',
    ),
}


@pytest.mark.parametrize(("text", "words"), CASES.values(), ids=CASES)
def test_a_mistake_is_refused_with_its_place_and_what_would_be_right(tmp_path: Path, text: str, words: str) -> None:
    told = refused(tmp_path, text)
    assert any(words in line for line in told), told
    assert all(line.startswith("farebox.toml") for line in told)


MODEL = '[[models]]\nid = "m"\ncontext = 1000\nmax_output = 100\n'
MODEL_CASES = {
    "no price": (MODEL, "models[1].list is missing"),
    "no selling price": (MODEL + "list = { input = 1, output = 2 }", "has no price to sell at; say sell ="),
    "half a price": (MODEL + "list = { input = 1 }\ndiscount = 0.5", "models[1].list.output is missing"),
    "both prices": (
        MODEL + "list = { input = 1, output = 2 }\nsell = { input = 1, output = 2 }\ndiscount = 0.5",
        "models[1].discount stands beside sell",
    ),
    "given away by discount": (
        MODEL + "list = { input = 1, output = 2 }\ndiscount = 1",
        "to give a model away, say sell",
    ),
    "negative price": (
        MODEL + "list = { input = 1, output = -2 }\ndiscount = 0.5",
        "list.output is -2; a price is from 0 to",
    ),
    "price as text": (
        MODEL + 'list = { input = "1", output = 2 }\ndiscount = 0',
        'list.input is "1"; it must be a number',
    ),
    "output over context": (
        MODEL.replace("100\n", "2000\n") + "list = { input = 1, output = 2 }\ndiscount = 0",
        "max_output is 2000; it is more than context, 1000",
    ),
    "fast list alone": (
        MODEL + "list = { input = 1, output = 2 }\nsell = { input = 1, output = 2 }\n"
        "fast_list = { input = 1, output = 2 }",
        "models[1].fast_sell is missing",
    ),
    "band without sell": (
        MODEL + "list = { input = 1, output = 2 }\nsell = { input = 1, output = 2 }\n"
        "[[models.bands]]\nabove = 10\nlist = { input = 1, output = 2 }",
        "models[1].bands[1].sell is missing",
    ),
    "bands out of order": (
        MODEL
        + "list = { input = 1, output = 2 }\ndiscount = 0\nbands = [{ above = 9, list = { input = 1, output = 2 } }, "
        "{ above = 8, list = { input = 1, output = 2 } }]",
        "models[1].bands must be in rising order",
    ),
    "one name for two": (
        (MODEL + "list = { input = 1, output = 2 }\ndiscount = 0\n") * 2,
        'models[2].id is "m", which is a name of the model m already',
    ),
    "too fine an amount": (
        MODEL + "list = { input = 1, output = 2 }\ndiscount = 0\nweb_search = 0.0000000001",
        "with at most 9 decimals",
    ),
    "no factor": (
        MODEL + "list = { input = 1, output = 2 }\ndiscount = 0\nbatch = 0",
        "batch is 0; a factor is above 0",
    ),
}


@pytest.mark.parametrize(("text", "words"), MODEL_CASES.values(), ids=MODEL_CASES)
def test_a_price_that_is_missing_or_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    told = refused(tmp_path, text)
    assert any(words in line for line in told), told


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = '[limits]\nattempts = 0\n[server]\nport = -1\nhots = "x"\n[log]\nlevel = "loud"\n'
    told = refused(tmp_path, text, {"FAREBOX_SITE_NAME": ""})
    assert [line.split(": ")[0] for line in told] == [
        "FAREBOX_SITE_NAME", "farebox.toml:2", "farebox.toml:4", "farebox.toml:5", "farebox.toml:7",
    ]  # fmt: skip


def test_a_variable_overrides_every_single_setting(tmp_path: Path) -> None:
    shown = load_uncommented(tmp_path)
    for name, types in SINGLE_TABLES.items():
        for type_ in types:
            struct = shown.server_limits if type_.__name__ == "ServerLimits" else getattr(shown, name)
            for field in type_.__struct_fields__:
                value = getattr(struct, field)
                said = in_toml(value) if isinstance(value, tuple) else str(value)
                if isinstance(value, Secret):
                    said = value.reveal()
                config = load(tmp_path, "", {variable_name(name, field): said.lower() if value is True else said})
                found = config.server_limits if type_.__name__ == "ServerLimits" else getattr(config, name)
                assert getattr(found, field) == value
                assert config.origins[f"{name}.{field}"] == variable_name(name, field)


def test_a_variable_wins_over_the_file_and_is_named_when_it_is_wrong(tmp_path: Path) -> None:
    text = "[server]\nport = 1\n"
    assert load(tmp_path, text, {"FAREBOX_SERVER_PORT": "2"}).server.port == 2
    assert refused(tmp_path, text, {"FAREBOX_SERVER_PORT": "http"}) == [
        'FAREBOX_SERVER_PORT: server.port is "http"; it must be a whole number from 0 to 65535'
    ]


@pytest.mark.parametrize("text", ["kraken", "[", '["kraken"]\nx = 1', "kraken,coinbase", '{ kraken = "x" }'])
def test_a_variable_that_is_no_list_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    told = refused(tmp_path, UPSTREAM, {"FAREBOX_PAYMENTS_RATES": text})
    assert all(line.startswith("FAREBOX_PAYMENTS_RATES: payments.rates") for line in told)


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    assert refused(tmp_path, "", {"FAREBOX_SERVER_PROT": "1"}) == [
        "FAREBOX_SERVER_PROT: is set, but sets nothing; did you mean FAREBOX_SERVER_PORT?"
    ]
    assert refused(tmp_path, "", {"FAREBOX_SERVR_PORT": "1"}) == [
        "FAREBOX_SERVR_PORT: is set, but sets nothing; did you mean FAREBOX_SERVER_PORT?"
    ]
    load(tmp_path, "", {"FAREBOX_CONFIG": "x", "FAREBOX_PORT": "tcp://10.0.0.1:80", "FAREBOX_MY_KEY": "k"})


@pytest.mark.parametrize("kind", ["env", "file", "literal"])
def test_a_secret_comes_from_variable_file_or_text_and_never_shows(tmp_path: Path, kind: str) -> None:
    canary = "sk-ant-canary-4711"
    (tmp_path / "key").write_text(canary + "\n")
    said = {"env": "env:MY_KEY", "file": "file:key", "literal": canary}[kind]
    config = load(tmp_path, f'[[upstreams]]\nname = "a"\nkind = "anthropic"\napi_key = "{said}"', {"MY_KEY": canary})
    assert config.upstreams[0].api_key.reveal() == canary
    assert canary not in repr(config)
    assert canary not in f"{config.upstreams[0].api_key}{config.origins}"


def test_a_bad_secret_is_refused_without_being_quoted(tmp_path: Path) -> None:
    for bad in ("canary 4711", "canary\\n4711", "canaré"):
        told = refused(tmp_path, f'[[upstreams]]\nname = "a"\nkind = "anthropic"\napi_key = "{bad}"')
        assert "no key" in told[0]
        assert "canar" not in told[0]
    assert "canary" not in refused(tmp_path, UPSTREAM + "api_key = 4711")[0]


def test_secrets_are_not_needed_where_nothing_is_sent_upstream(tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_text(EXAMPLE)
    assert not load_config(path, {}, secrets=False).upstreams[0].api_key


def test_a_relative_database_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    assert load(tmp_path, "").database_path == tmp_path / "farebox.db"
    assert load(tmp_path, '[database]\nurl = "sqlite:////var/x.db"').database_path == Path("/var/x.db")
    from_variable = load(tmp_path, "", {"FAREBOX_DATABASE_URL": "sqlite:///x.db"})
    assert from_variable.database_path == Path.cwd() / "x.db"


def test_an_upstream_may_name_its_models_by_alias(tmp_path: Path) -> None:
    """Calls are sent by id, so an alias that stayed one would send none."""
    config = load(tmp_path, UPSTREAM + 'models = ["claude-haiku-4-5-20251001", "claude-opus-4-6"]')
    assert config.upstreams[0].models == ("claude-haiku-4-5", "claude-opus-4-6")


def test_no_upstream_needs_to_be_here_they_can_be_entered_while_it_serves(tmp_path: Path) -> None:
    assert load(tmp_path, "").upstreams == ()


def test_the_public_address_follows_from_where_the_server_listens_unless_it_is_set(tmp_path: Path) -> None:
    assert load(tmp_path, "").base_url == "http://127.0.0.1:8080/api/proxy"
    assert load(tmp_path, '[server]\nhost = "::"\nport = 81').base_url == "http://[::1]:81/api/proxy"
    assert load(tmp_path, '[server]\npublic_url = "https://a.example"').base_url == "https://a.example/api/proxy"


def test_prices_are_exact_and_cache_classes_follow_from_input(tmp_path: Path) -> None:
    text = MODEL + "list = { input = 0.1, output = 0.3, cache_read = 0.007 }\ndiscount = 0.3\n"
    rates = load(tmp_path, text).models[0].rates
    assert (rates.list.input, rates.list.output, rates.list.cache_read) == (100_000_000, 300_000_000, 7_000_000)
    assert (rates.list.cache_write_5m, rates.list.cache_write_1h) == (125_000_000, 200_000_000)
    assert (rates.sell.input, rates.sell.output, rates.sell.cache_read) == (70_000_000, 210_000_000, 4_900_000)


def test_the_seed_catalogue_holds_to_the_cent() -> None:
    seed = {
        "claude-opus-4-6": ("7.50", "15", "37.50", "75"),
        "claude-sonnet-4-6": ("1.50", "3", "7.50", "15"),
        "claude-haiku-4-5": ("0.40", "0.80", "2.00", "4.00"),
    }
    models = {model.id: model for model in default_offer()[0]}
    for name, prices in seed.items():
        rates = models[name].rates
        found = (rates.sell.input, rates.list.input, rates.sell.output, rates.list.output)
        assert found == tuple(int(Decimal(price) * NANOS_PER_USD) for price in prices)
        assert models[name].context_tokens == 200_000


@pytest.mark.parametrize(
    ("name", "prices"),
    [
        ("claude-fable-5-2", "8 40 10 16 0.20"),
        ("claude-mythos-5-2", "8 40 10 16 0.20"),
        ("claude-fable-5-1", "10 50 12.5 20 0.25"),
        ("claude-mythos-5-1", "10 50 12.5 20 0.25"),
        ("claude-fable-5", "10 50 12.5 20 1.00"),
        ("claude-mythos-5", "10 50 12.5 20 1.00"),
        ("claude-opus-5-5", "4 20 5 8 0.20"),
        ("claude-opus-5", "5 25 6.25 10 0.50"),
        ("claude-opus-4-8", "5 25 6.25 10 0.50"),
        ("claude-opus-4-7", "5 25 6.25 10 0.50"),
        ("claude-opus-4-5-20251101", "5 25 6.25 10 0.50"),
        ("claude-sonnet-5-5", "2 10 2.5 4 0.10"),
        ("claude-sonnet-5", "2 10 2.5 4 0.20"),
        ("claude-sonnet-4-5-20250929", "3 15 3.75 6 0.30"),
        ("claude-haiku-5-5", "0.10 0.50 0.125 0.20 0.01"),
    ],
)
def test_todays_models_are_sold_at_half_of_the_public_list(name: str, prices: str) -> None:
    model = next(model for model in default_offer()[0] if name in {model.id, *model.aliases})
    listed = [int(Decimal(price) * NANOS_PER_USD) for price in prices.split()]
    rates = model.rates
    assert list(msgspec.structs.astuple(rates.list)) == listed
    assert list(msgspec.structs.astuple(rates.sell)) == [price // 2 for price in listed]


def test_the_catalogue_knows_bands_fast_prices_and_geography() -> None:
    models = {model.id: model for model in default_offer()[0]}
    check_names(models.values())
    above = models["claude-haiku-5-5"].tariff(100_001, fast=False)
    assert above.list.input == NANOS_PER_USD // 2
    assert models["claude-haiku-5-5"].tariff(100_000, fast=False).list.input == NANOS_PER_USD // 10
    assert models["claude-fable-5-2"].tariff(1, fast=True).list.cache_read == 400_000_000
    assert models["claude-opus-5-5"].tariff(1, fast=True).list.output == 40 * NANOS_PER_USD
    assert models["claude-opus-4-6"].geo_us_ppm == 1_100_000
    assert models["claude-haiku-4-5"].geo_us_ppm == PPM
    assert all(model.web_search == 10_000_000 for model in models.values())


def test_the_seed_plans_hold() -> None:
    plans = {plan.name: plan for plan in default_offer()[1]}
    limits = {name: (plan.requests_per_minute, plan.tokens_per_minute) for name, plan in plans.items()}
    assert limits["free"] == (10, 40_000)
    assert limits["starter"] == (60, 200_000)
    assert limits["pro"] == (300, 1_000_000)
    assert plans["enterprise"].top_up_nanos is None
    assert next(iter(plans)) == "free"

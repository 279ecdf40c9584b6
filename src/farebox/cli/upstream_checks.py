"""The checks of `farebox doctor` on upstreams, of the configuration and entered: there, reachable, taking their key."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from farebox.accounts.sealing import Seals
from farebox.cli.checks import Finding
from farebox.cli.common import now_us, open_books
from farebox.clock import steady_clock
from farebox.config import Config
from farebox.errors import FareboxError, Refusal, StoreUnavailable
from farebox.http.failures import UpstreamError
from farebox.upstreams.checks import goes_in_the_clear, problems
from farebox.upstreams.entries import Entry, list_entries, opened
from farebox.upstreams.fields import said_by
from farebox.upstreams.kinds.kind import Ask
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.trial import is_free, try_upstream
from farebox.upstreams.upstream import Upstream

_MODELS: Final = "/v1/models"
_CONNECT_S: Final = 10.0
_ANSWER_S: Final = 15.0
_HEADERS: Final = ((b"anthropic-version", b"2023-06-01"), (b"user-agent", b"farebox-doctor"))


class Entered(Struct, frozen=True):
    """What was entered and can be used, and what is to be said about the rest."""

    upstreams: tuple[UpstreamSettings, ...] = ()
    findings: tuple[Finding, ...] = ()


async def look_at_entered(config: Config) -> Entered:
    """Read the upstreams that operators have entered, as the server would. Without books there are none."""
    try:
        async with open_books(config) as store:
            entries = await list_entries(store)
            sealed = any(entry.secrets is not None for entry in entries)
            seals = await Seals.open(store, config.server.secret, now_us()) if sealed else Seals([bytes(32)])
    except StoreUnavailable:  # its own check tells why
        return Entered()
    upstreams, findings = [], []
    for entry in entries:
        found = _look_at(config, entry, seals)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            upstreams.append(found)
    if not config.upstreams and not upstreams:
        advice = "`farebox upstream add`, /admin/upstreams or [[upstreams]] in the file; until then calls get a 502"
        findings.append(Finding("upstreams", "warn", "there is none: nowhere to send calls to", advice))
    if sealed and not config.server.secret:
        advice = "set [server] secret, then enter the keys anew: `farebox upstream edit NAME --key-file FILE`"
        words = "keys of upstreams are sealed under a key that lies in the same database"
        findings.append(Finding("upstream keys", "warn", words, advice))
    return Entered(tuple(upstreams), tuple(findings))


async def check_upstreams(config: Config, upstreams: Sequence[UpstreamSettings]) -> list[Finding]:
    """Ask every upstream, all at once: whether it is there, and takes its credential."""
    cheapest = min(config.models, key=lambda model: model.rates.list.input)
    return list(await asyncio.gather(*(_ask(upstream, cheapest.id) for upstream in upstreams)))


def _look_at(config: Config, entry: Entry, seals: Seals) -> UpstreamSettings | Finding:
    name = f"upstream {entry.name}"
    if any(one.name == entry.name for one in config.upstreams):
        advice = "rename the one in the file, or `farebox upstream remove` the other"
        return Finding(name, "warn", "was entered, and the file has one of that name, which is in force", advice)
    try:
        settings = opened(entry, seals)
    except FareboxError as error:
        return Finding(
            name,
            "FAIL",
            f"cannot be used: {error}",
            f"`farebox upstream edit {entry.name} --key-file FILE` enters its key anew",
        )
    for field, problem in problems(settings, said_by(settings)):
        return Finding(name, "FAIL", f"cannot be used: {field} {problem}", f"`farebox upstream edit {entry.name}`")
    return settings


async def _ask(settings: UpstreamSettings, model_id: str) -> Finding:
    name = f"upstream {settings.name}"
    if not settings.base_url:
        return Finding(name, "ok", "simulator in this process")
    try:
        upstream = Upstream(settings, connect_s=_CONNECT_S, stall_s=_ANSWER_S)
    except ValueError as error:
        return Finding(name, "FAIL", f"cannot be used: {error}", "check its settings")
    try:
        if upstream.kind.has(_MODELS):
            return await _list_models(name, settings, upstream)
        if is_free(upstream):
            return await _count(name, settings, upstream, model_id)
    finally:
        await upstream.client.close()
        await upstream.kind.close()
    advice = f"`farebox upstream test {settings.name}` makes a call of one token, which you pay for"
    return Finding(name, "ok", f"{settings.base_url} was not asked: it has no question that is free", advice)


async def _list_models(name: str, settings: UpstreamSettings, upstream: Upstream) -> Finding:
    started = time.monotonic()
    try:
        ask = Ask(path=_MODELS, query="limit=1", method="GET", headers=list(_HEADERS))
        answer = await upstream.request(ask, first_byte_s=_ANSWER_S)
        answer.abandon()
    except (UpstreamError, Refusal) as error:
        return _unreachable(name, settings, str(error))
    if answer.status in {401, 403}:
        return _refused(name, settings, answer.status)
    if answer.status != 200:
        advice = "not every server that speaks Messages lists models; try a call"
        return Finding(name, "warn", f"{settings.base_url} answered {answer.status} to GET {_MODELS}", advice)
    return _well(name, settings, time.monotonic() - started)


async def _count(name: str, settings: UpstreamSettings, upstream: Upstream, model_id: str) -> Finding:
    trial = await try_upstream(upstream, model_id, steady_clock())
    if trial.well:
        return _well(name, settings, trial.took_us / 1e6)
    if trial.words[:3] in {"401", "403"}:
        return _refused(name, settings, int(trial.words[:3]))
    if not trial.words[:3].isdecimal():
        return _unreachable(name, settings, trial.words)
    return Finding(name, "warn", f"{settings.base_url} answered {trial.words}", "see whether it serves the model")


def _unreachable(name: str, settings: UpstreamSettings, words: str) -> Finding:
    advice = "check base_url and the way there"
    return Finding(name, "FAIL", f"{settings.base_url} does not answer: {words}", advice)


def _refused(name: str, settings: UpstreamSettings, status: int) -> Finding:
    advice = "check its credential: that it is whole, in force, and meant for this upstream"
    return Finding(name, "FAIL", f"{settings.base_url} refuses the key (status {status})", advice)


def _well(name: str, settings: UpstreamSettings, took_s: float) -> Finding:
    if goes_in_the_clear(settings.base_url):
        advice = "use https, or a network that is yours alone"
        return Finding(name, "warn", f"{settings.base_url} takes the key, but over plain http", advice)
    return Finding(name, "ok", f"{settings.base_url} takes the key ({took_s * 1000:.0f} ms)")

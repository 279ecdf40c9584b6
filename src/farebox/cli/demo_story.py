"""Whom the demo's history tells of, and what they did: made-up people and calls, the same each time. Pure.

Claude Code sessions grow their context turn by turn and send sub-agents out; services hum by day; builds run at night.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import Final, Literal

import msgspec

from farebox.clock import DAY_US, US_PER_S

HISTORY_DAYS: Final = 90
_MINUTE_US: Final = 60 * US_PER_S
_HOUR_US: Final = 60 * _MINUTE_US
_CACHE_LIVES_US: Final = 5 * _MINUTE_US
_COMPACT_AT: Final = 150_000
_INCIDENT_DAYS_AGO: Final = 33
_INCIDENT_HOURS: Final = (13, 15)
"""When the made-up upstream was in trouble, in UTC."""
_DAY_SHAPE: Final = (1, 1, 1, 1, 1, 2, 4, 8, 14, 20, 23, 21, 15, 17, 22, 24, 22, 17, 11, 7, 5, 4, 3, 2)
_WEEK_SHAPE: Final = (1.0, 1.12, 1.15, 1.05, 0.86, 0.2, 0.16)

Work = Literal["claude_code", "service", "nightly"]


class Habit(msgspec.Struct, frozen=True):
    """How one key is used. `per_day`: sessions or calls on an ordinary weekday, in the middle of the history."""

    key: str
    work: Work
    per_day: float
    models: tuple[str, ...]
    days_ago: tuple[int, int] = (HISTORY_DAYS, 0)
    limit_usd: int | None = None
    """What the key may spend in a month."""


class Act(msgspec.Struct, frozen=True):
    """Something an operator did about a customer, for the audit log."""

    days_ago: int
    action: str
    before: dict[str, str]
    after: dict[str, str]
    reason: str


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A made-up customer. Who tops up does so when less than `low_usd` is left, by amounts in turn."""

    email: str
    joined_days_ago: int
    habits: tuple[Habit, ...] = ()
    revoked_keys: tuple[str, ...] = ()
    top_ups_usd: tuple[int, ...] = ()
    low_usd: int = 6
    plan: str = ""
    hours_east: int = 1
    runs_dry: bool = False
    """Tops up once and never again: the last call ends for want of money."""
    gift: bool = False
    """Got something to try with from the house."""
    alert_usd: int | None = None
    """Wants a mail when less than this is left."""
    acts: tuple[Act, ...] = ()
    suspended_days_ago: int | None = None
    notes: str = ""
    verified: bool = True


class ToldCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of the story; prices are for the books to find."""

    at_us: int
    key: str
    model: str
    input: int
    output: int
    cache_write: int = 0
    cache_read: int = 0
    outcome: str = "finished"
    status: int = 200
    stop_reason: str | None = "end_turn"
    session: str | None = None
    agent: str | None = None
    parent_agent: str | None = None
    streamed: bool = True
    attempts: int = 1
    first_byte_us: int | None = None
    duration_us: int = 0


_SONNET: Final = "claude-sonnet-4-6"
_HAIKU: Final = "claude-haiku-4-5"
_OPUS: Final = "claude-opus-5-5"
_SMALL: Final = "claude-haiku-5-5"
_NEW: Final = "claude-sonnet-5-5"

CAST: Final = (
    Person(
        email="demo@farebox.example",
        joined_days_ago=HISTORY_DAYS,
        habits=(
            Habit("laptop", "claude_code", 2.6, (_SONNET, _SONNET, _OPUS, _NEW), (59, 0)),
            Habit("old-laptop", "claude_code", 2.4, (_SONNET, _OPUS), (HISTORY_DAYS, 60)),
            Habit("support-bot", "service", 60, (_HAIKU, _HAIKU, _HAIKU, _SMALL), limit_usd=4),
            Habit("nightly-review", "nightly", 14, (_SONNET,), (62, 0), limit_usd=40),
        ),
        revoked_keys=("old-laptop",),
        top_ups_usd=(50, 100),
        gift=True,
        alert_usd=5,
        notes="The account that the demo's key belongs to.",
    ),
    Person(
        email="ines@kestrel-labs.example",
        joined_days_ago=84,
        habits=(
            Habit("ingest", "service", 85, (_NEW, _HAIKU)),
            Habit("eval", "nightly", 24, (_NEW, _OPUS), (51, 0)),
        ),
        top_ups_usd=(50, 25),
        low_usd=8,
        plan="enterprise",
        hours_east=0,
        acts=(Act(20, "account.plan", {"plan": "pro"}, {"plan": "enterprise"}, "50 calls at once, by agreement"),),
        notes="Asked for 50 calls at once; on enterprise by agreement since day 20.",
    ),
    Person(
        email="tomasz@papermill.example",
        joined_days_ago=71,
        habits=(Habit("claude-code", "claude_code", 0.9, (_SONNET, _NEW)),),
        top_ups_usd=(20,),
        low_usd=2,
        hours_east=2,
    ),
    Person(
        email="li.wei@northgate.example",
        joined_days_ago=24,
        habits=(Habit("first try", "claude_code", 1.1, (_SONNET, _OPUS)),),
        top_ups_usd=(5,),
        hours_east=8,
        runs_dry=True,
    ),
    Person(
        email="sam@oddjob.example",
        joined_days_ago=46,
        habits=(
            Habit("laptop", "claude_code", 0.7, (_SONNET,), (46, 19)),
            Habit("scraper", "service", 160, (_SMALL,), (23, 19)),
        ),
        top_ups_usd=(25,),
        low_usd=3,
        hours_east=-5,
        suspended_days_ago=18,
        acts=(
            Act(
                18,
                "account.suspend",
                {"status": "active"},
                {"status": "suspended"},
                "a key was found in a public repository, and is used from many places",
            ),
        ),
        notes='Key "scraper" was found in a public repository. Wrote to the owner; no answer yet.',
    ),
    Person(email="noor@quiet-lines.example", joined_days_ago=1, verified=False, hours_east=3),
)


def tell(person: Person, begin_us: int, now_us: int, rng: Random) -> list[ToldCall]:
    """Tell what a person's calls were, in the order they ended, from the first moment of a day until now."""
    calls: list[ToldCall] = []
    for habit in person.habits:
        first, last = (HISTORY_DAYS - days for days in habit.days_ago)
        for day in range(max(first, HISTORY_DAYS - person.joined_days_ago), last + 1):
            day_us = begin_us + day * DAY_US
            calls += _day_of(habit, person, day_us, day, rng)
    joined_us = begin_us + (HISTORY_DAYS - person.joined_days_ago) * DAY_US + 9 * _HOUR_US
    until_us = now_us
    if person.suspended_days_ago is not None:
        until_us = begin_us + (HISTORY_DAYS - person.suspended_days_ago) * DAY_US
    kept = [call for call in calls if joined_us < call.at_us < until_us - 2 * _MINUTE_US]
    trouble_us = begin_us + (HISTORY_DAYS - _INCIDENT_DAYS_AGO) * DAY_US
    trouble = range(*(trouble_us + hour * _HOUR_US for hour in _INCIDENT_HOURS))
    return sorted((_fate(call, rng, in_trouble=call.at_us in trouble) for call in kept), key=lambda call: call.at_us)


def _day_of(habit: Habit, person: Person, day_us: int, day: int, rng: Random) -> Iterator[ToldCall]:
    """Tell one day of one key."""
    weekday = (day_us // DAY_US + 3) % 7  # 1970 began on a Thursday
    if day == HISTORY_DAYS:
        weekday = min(weekday, 4)  # today there is always something to see
    growth = 0.75 + 0.5 * day / HISTORY_DAYS
    often = habit.per_day * growth * rng.uniform(0.75, 1.25)
    if habit.work == "nightly":
        if weekday < 5:
            at_us = day_us + 2 * _HOUR_US + rng.randrange(10 * _MINUTE_US)
            yield from _build(habit, at_us, round(often), rng)
        return
    often *= _WEEK_SHAPE[weekday] if habit.work == "claude_code" else 0.4 + 0.6 * _WEEK_SHAPE[weekday]
    for _ in range(_chance(often, rng)):
        hour = rng.choices(range(24), _DAY_SHAPE)[0] - person.hours_east
        at_us = day_us + (hour * 3600 + rng.randrange(3600)) * US_PER_S
        if habit.work == "claude_code":
            yield from _session(habit, at_us, rng)
        else:
            yield _errand(habit, at_us, rng)


def _chance(mean: float, rng: Random) -> int:
    """Draw how often something happens that happens so often on average (Knuth's Poisson; normal for many)."""
    if mean > 30:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _session(habit: Habit, at_us: int, rng: Random) -> Iterator[ToldCall]:
    """Tell a Claude Code session: a title, then turns whose context grows, and now and then sub-agents."""
    session = _uuid(rng)
    model = rng.choice(habit.models)
    yield _call(habit.key, _HAIKU, at_us, rng, input=rng.randint(180, 620), output=rng.randint(12, 40), session=session)
    turns = min(90, max(2, round(rng.lognormvariate(3.0, 0.7))))
    busy = [rng.randrange(3, turns) for _ in range(_chance(0.7, rng))] if turns > 6 else []
    for number, turn in enumerate(_turns(habit.key, model, at_us, turns, rng.randint(17_000, 26_000), rng)):
        yield msgspec.structs.replace(turn, session=session)
        if number in busy:
            for helper in range(rng.randint(1, 3)):
                agent = _agent(rng)
                used = rng.choice((_HAIKU, model))
                begin_us = turn.at_us + (helper + 1) * 900_000
                for step in _turns(habit.key, used, begin_us, rng.randint(3, 14), rng.randint(8_000, 13_000), rng):
                    yield msgspec.structs.replace(step, session=session, agent=agent)


def _turns(key: str, model: str, at_us: int, count: int, context: int, rng: Random) -> Iterator[ToldCall]:
    """Tell turns over one context: what was said before is read from the cache, while that lives."""
    cached = 0
    for number in range(count):
        output = min(9_000, round(rng.lognormvariate(5.7, 0.95)) + 8)
        call = _call(
            key,
            model,
            at_us,
            rng,
            input=rng.randint(2, 14),
            cache_write=context - cached,
            cache_read=cached,
            output=output,
            stop_reason="end_turn" if number == count - 1 or rng.random() < 0.12 else "tool_use",
        )
        yield call
        pause_us = round(rng.lognormvariate(2.2, 1.15) * US_PER_S)
        at_us = call.at_us + pause_us
        cached = context if pause_us < _CACHE_LIVES_US else 0
        context += output + round(rng.lognormvariate(7.0, 1.0))
        if context > _COMPACT_AT:
            context, cached = rng.randint(24_000, 32_000), 0


def _errand(habit: Habit, at_us: int, rng: Random) -> ToldCall:
    """Tell a small call of a service: the same long instructions each time, a question, a short answer."""
    warm = rng.random() < 0.8
    model = rng.choice(habit.models)
    return _call(
        habit.key,
        model,
        at_us,
        rng,
        input=rng.randint(90, 1_400),
        cache_write=0 if warm else 4_212,
        cache_read=4_212 if warm else 0,
        output=rng.randint(40, 420),
        streamed=rng.random() < 0.3,
    )


def _build(habit: Habit, at_us: int, count: int, rng: Random) -> Iterator[ToldCall]:
    """Tell the calls of a nightly build: long prompts, long answers, one after the other."""
    for _ in range(count):
        size = rng.randint(6_000, 40_000)
        call = _call(
            habit.key,
            rng.choice(habit.models),
            at_us,
            rng,
            input=size,
            output=rng.randint(500, 3_400),
            streamed=False,
            stop_reason="max_tokens" if rng.random() < 0.04 else "end_turn",
        )
        yield call
        at_us = call.at_us + rng.randint(1, 9) * US_PER_S


def _call(
    key: str,
    model: str,
    begin_us: int,
    rng: Random,
    *,
    input: int,  # noqa: A002  as the API calls it
    output: int,
    cache_write: int = 0,
    cache_read: int = 0,
    streamed: bool = True,
    stop_reason: str = "end_turn",
    session: str | None = None,
) -> ToldCall:
    """Tell a call that began at a moment and ended well."""
    first_us = round(rng.lognormvariate(0, 0.35) * 620_000) + (input + cache_write) * 9 + cache_read
    per_s = {"o": 62, "s": 78, "h": 150}.get(model.removeprefix("claude-")[0], 70) * rng.uniform(0.8, 1.15)
    took_us = first_us + round(output / per_s * US_PER_S)
    return ToldCall(
        at_us=begin_us + took_us,
        key=key,
        model=model,
        input=input,
        output=output,
        cache_write=cache_write,
        cache_read=cache_read,
        stop_reason=stop_reason,
        session=session,
        streamed=streamed,
        first_byte_us=first_us if streamed else took_us,
        duration_us=took_us,
    )


def _fate(call: ToldCall, rng: Random, *, in_trouble: bool) -> ToldCall:
    """Let some calls end otherwise: the client hangs up, the upstream breaks or refuses, a second try is needed."""
    draw = rng.random() * (0.05 if in_trouble and rng.random() < 0.4 else 1)
    if draw < 0.012:
        return msgspec.structs.replace(call, outcome="upstream_broke", stop_reason=None, output=call.output // 3)
    if draw < 0.021:
        return msgspec.structs.replace(
            call,
            outcome="refused_upstream",
            status=400,
            stop_reason=None,
            input=0,
            output=0,
            cache_write=0,
            cache_read=0,
            first_byte_us=call.first_byte_us and call.first_byte_us // 4,
            duration_us=(call.first_byte_us or 0) // 4,
        )
    if call.streamed and draw < 0.043:
        return msgspec.structs.replace(call, outcome="client_gone", stop_reason=None, output=call.output // 2 + 1)
    if draw < 0.055:
        return msgspec.structs.replace(call, attempts=2, duration_us=call.duration_us + 1_400_000)
    return call


def _uuid(rng: Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _agent(rng: Random) -> str:
    return f"a{rng.getrandbits(64):016x}"

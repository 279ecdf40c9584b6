"""The endpoints about an account itself: balance, usage, key, single calls, receipts, quotes, the status line."""

from typing import Final

from farebox import errors
from farebox.billing.usage import Line, Usage
from farebox.books.call_receipts import show_line
from farebox.books.log import itemise
from farebox.money import decimal_usd
from farebox.web.docs.doctor_endpoints import doctor_endpoints
from farebox.web.docs.endpoint import EVERYWHERE, WITH_A_BODY, Endpoint, Field, Schema
from farebox.web.offer import Offer

_REFUSALS: Final = (*EVERYWHERE, errors.RateLimited)
_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}
_USD: Final[Schema] = {"type": "string", "pattern": r"^-?\d+\.\d{2,15}$"}
_USD_OR_NULL: Final[Schema] = {"type": ["string", "null"], "pattern": r"^-?\d+\.\d{2,15}$"}
_DAY: Final[Schema] = {"type": "string", "format": "date", "pattern": r"^\d{4}-\d{2}-\d{2}$"}
_MOMENT: Final[Schema] = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$"}
_CURRENCY: Final[Schema] = {"const": "USD"}


def _object(**properties: Schema) -> Schema:
    """Describe an object that has all of these, always."""
    return {"type": "object", "required": list(properties), "properties": properties}


def account_endpoints(offer: Offer) -> tuple[Endpoint, ...]:
    """Describe them; the examples are of a call to the model that all samples use."""
    call, model = _example_call(offer), offer.sample.id
    return (
        _balance(),
        _usage(model),
        _key(offer.key_prefix),
        _request(call),
        _receipt(call, offer.public_url, offer.key_prefix),
        _statusline(),
        *doctor_endpoints(),
    )


def quote(messages: Endpoint) -> Endpoint:
    """Describe quotes: they take what a message takes."""
    model = (messages.example or {})["model"]
    return Endpoint(
        slug="quote",
        method="POST",
        path="/v1/messages/quote",
        title="Get a quote",
        words="Ask what a request would hold and cost, and whether your balance is enough, before you send it. Free; "
        "nothing is held, and nothing goes to the provider.",
        fields=messages.fields,
        example=messages.example,
        answer=_QUOTE,
        answer_example={
            "type": "quote",
            "currency": "USD",
            "model": model,
            "stream": False,
            "max_tokens": 1024,
            "price_version": 1,
            "input_tokens": {"expected": 31, "at_most": 185},
            "output_tokens": {"expected": 105, "at_most": 1024},
            "expected_cost": "0.000834",
            "expected_from": "input: a token for every four bytes of text, at the plain price; "
            "output: the median of 17 finished calls to this model among your last 200",
            "highest_cost": "0.0079575",
            "hold": "0.0079575",
            "least_hold": "0.0079575",
            "free": "12.345",
            "spend_limit_left": None,
            "missing": "0.00",
            "affordable_max_tokens": 64000,
            "admitted": "yes",
            "refusal": None,
        },
        refusals=WITH_A_BODY,
    )


def _balance() -> Endpoint:
    return Endpoint(
        slug="balance",
        method="GET",
        path="/v1/balance",
        title="Get the balance",
        words="What you have, what of it is held for calls under way, and how long it lasts at the present rate. Free.",
        fields=(),
        example=None,
        answer=_BALANCE,
        answer_example={
            "type": "balance",
            "currency": "USD",
            "as_of": "2026-11-22T10:30:00.000000Z",
            "posted": "12.345",
            "held": "0.03072",
            "free": "12.31428",
            "spent_today": "0.41",
            "spent_7_days": "3.87",
            "days_left": 22,
            "key_budget": None,
        },
        refusals=_REFUSALS,
    )


def _usage(model: str) -> Endpoint:
    return Endpoint(
        slug="usage",
        method="GET",
        path="/v1/usage",
        title="Get usage",
        words="Requests, tokens and what they cost, summed up by UTC day, the same sums as the dashboard's. Free.",
        fields=(
            Field("from", _DAY, "The first day, such as `2026-11-01`; else 29 days before the last.", place="query"),
            Field("to", _DAY, "The last day; else today. A range has at most 366 days.", place="query"),
            Field(
                "by",
                {"type": "string", "enum": ["model", "key", "outcome", "day"], "default": "model"},
                "What each day is split by: `model`, `key`, `outcome`; or `day`, for not at all.",
                place="query",
            ),
            Field(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "How many rows to give at most.",
                place="query",
            ),
            Field(
                "page",
                {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}\."},
                "Where to go on: what `next_page` of the answer before said.",
                place="query",
            ),
        ),
        example=None,
        answer=_USAGE,
        answer_example={
            "type": "usage",
            "currency": "USD",
            "from": "2026-11-21",
            "to": "2026-11-22",
            "by": "model",
            "total": {"requests": 17, "tokens": 48211, "charged": "0.41", "list_cost": "0.82"},
            "data": [
                {
                    "day": "2026-11-22",
                    "group": model,
                    "name": model,
                    "requests": 17,
                    "tokens": 48211,
                    "charged": "0.41",
                    "list_cost": "0.82",
                }
            ],
            "has_more": False,
            "next_page": None,
        },
        refusals=_REFUSALS,
    )


def _key(key_prefix: str) -> Endpoint:
    return Endpoint(
        slug="key",
        method="GET",
        path="/v1/key",
        title="Describe this key",
        words="The key you ask with: its name, what it may do, its spend limit, and the limits of its account. Free.",
        fields=(),
        example=None,
        answer=_KEY,
        answer_example={
            "type": "key",
            "id": 3,
            "name": "laptop",
            "hint": f"{key_prefix}7kVS…FQ4P",
            "created_at": "2026-11-01T09:00:00.000000Z",
            "expires_at": None,
            "models": [],
            "networks": [],
            "requests_per_minute": None,
            "budget": {
                "limit": "25.00",
                "used": "3.87",
                "left": "21.13",
                "resets": "monthly",
                "resets_at": "2026-12-01T00:00:00.000000Z",
            },
            "account": {
                "id": 7,
                "plan": "pro",
                "requests_per_minute": 300,
                "tokens_per_minute": 1_000_000,
                "concurrent": 64,
            },
        },
        refusals=_REFUSALS,
    )


_ID: Final = Field(
    "request_id",
    {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
    "The id of a call: the header `request-id` of its answer, or the one in [the log](/dashboard/requests).",
    required=True,
    place="path",
)


def _request(call: Schema) -> Endpoint:
    return Endpoint(
        slug="request",
        method="GET",
        path="/v1/requests/{request_id}",
        title="Get a call",
        words="One call of your account that has ended: its tokens, every line of its cost, and how it ended. Free.",
        fields=(_ID,),
        example=None,
        answer=_REQUEST,
        answer_example={
            "type": "request",
            **call,
            "key_id": 3,
            "session": None,
            "agent": None,
            "held": "0.03072",
            "streamed": True,
            "attempts": 1,
            "first_byte_ms": 412,
            "duration_ms": 2318,
        },
        refusals=(*_REFUSALS, errors.NotFound),
    )


def _receipt(call: Schema, public_url: str, key_prefix: str) -> Endpoint:
    return Endpoint(
        slug="receipt",
        method="GET",
        path="/v1/requests/{request_id}/receipt",
        title="Get a signed receipt",
        words="What one call came to, as a statement of this gateway's, signed, so that anybody can check it. Free.",
        fields=(_ID,),
        example=None,
        answer=_RECEIPT,
        answer_example={
            "receipt": {
                "type": "receipt",
                "version": 1,
                "issuer": {"name": "Farebox", "url": public_url},
                "issued_at": "2026-11-22T10:31:00.000000Z",
                "account_id": 7,
                "key": f"{key_prefix}7kVS…FQ4P",
                **call,
            },
            "signature": {
                "algorithm": "Ed25519",
                "key_id": "PHYXL8OaIiW_VconKHGZhNQ5AUWr3-gNVlWoc4Rt2Qo",
                "value": "fu5X3paLbgvGc3gcdAQxIy9fNGbD0LkDnDo2nf1pQxCS6LQ0o3EbHqaLo2yh7CUbi8JuTmWzHG8cg01InlBiAg",
            },
        },
        refusals=(*_REFUSALS, errors.NotFound),
    )


def _statusline() -> Endpoint:
    return Endpoint(
        slug="statusline",
        method="GET",
        path="/v1/statusline",
        title="Get a status line",
        words="What is left, what was spent today and in a session, in one short line: as text, or as JSON to a client "
        "that says `accept: application/json`. Free.",
        fields=(
            Field(
                "session",
                {"type": "string", "pattern": "^[ -~]*$", "maxLength": 200},
                "A session of Claude Code, whose cost is told as well. The header `x-claude-code-session-id` does the "
                "same.",
                place="query",
            ),
        ),
        example=None,
        answer=_STATUSLINE,
        answer_example={
            "type": "statusline",
            "currency": "USD",
            "text": "$12.34 left · $0.41 today · $0.12 session",
            "posted": "12.345",
            "held": "0.00",
            "free": "12.345",
            "spent_today": "0.4083",
            "session": "3f0c2a9e-5d1b-4a77-9d0e-6b1f2c3d4e5f",
            "spent_session": "0.1127",
        },
        refusals=_REFUSALS,
        answers_text=True,
    )


def _example_call(offer: Offer) -> Schema:
    model, usage = offer.sample, Usage((Line(offer.sample.id, input=9, output=132),))
    priced = offer.catalogue.price(usage, model)
    return {
        "request_id": "req_0198f3a2b4c57d1e8f60718293a4b5c6",
        "message_id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "at": "2026-11-22T10:30:00.000000Z",
        "model": model.id,
        "asked_model": model.id,
        "outcome": "finished",
        "kind": "exact",
        "http_status": 200,
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 9,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "cache_read_tokens": 0,
            "output_tokens": 132,
            "web_searches": 0,
        },
        "currency": "USD",
        "price_version": 1,
        "lines": [show_line(line) for line in itemise(usage, model, offer.catalogue).lines],
        "notes": [],
        "cost": decimal_usd(priced.cost_nanos),
        "waived": "0.00",
        "shortfall": "0.00",
        "charged": decimal_usd(priced.cost_nanos),
        "refunded": "0.00",
        "list_cost": decimal_usd(priced.list_nanos),
    }


_FIGURES: Final[Schema] = {"requests": _COUNT, "tokens": _COUNT, "charged": _USD, "list_cost": _USD}
_BUDGET: Final[Schema] = {
    "anyOf": [
        _object(
            limit=_USD,
            used=_USD,
            left=_USD,
            resets={"type": "string", "enum": ["never", "daily", "weekly", "monthly"]},
            resets_at={"anyOf": [_MOMENT, {"type": "null"}]},
        ),
        {"type": "null"},
    ]
}
_BALANCE: Final = _object(
    type={"const": "balance"},
    currency=_CURRENCY,
    as_of=_MOMENT,
    posted=_USD,
    held=_USD,
    free=_USD,
    spent_today=_USD,
    spent_7_days=_USD,
    days_left=_COUNT_OR_NULL,
    key_budget=_BUDGET,
)
_USAGE: Final = _object(
    type={"const": "usage"},
    currency=_CURRENCY,
    **{"from": _DAY},
    to=_DAY,
    by=_TEXT,
    total=_object(**_FIGURES),
    data={"type": "array", "items": _object(day=_DAY, group=_TEXT_OR_NULL, name=_TEXT_OR_NULL, **_FIGURES)},
    has_more={"type": "boolean"},
    next_page=_TEXT_OR_NULL,
)
_KEY: Final = _object(
    type={"const": "key"},
    id=_COUNT,
    name=_TEXT,
    hint=_TEXT,
    created_at=_MOMENT,
    expires_at={"anyOf": [_MOMENT, {"type": "null"}]},
    models={"type": "array", "items": _TEXT},
    networks={"type": "array", "items": _TEXT},
    requests_per_minute=_COUNT_OR_NULL,
    budget=_BUDGET,
    account=_object(id=_COUNT, plan=_TEXT, requests_per_minute=_COUNT, tokens_per_minute=_COUNT, concurrent=_COUNT),
)
_LINE: Final = _object(
    what=_TEXT,
    model=_TEXT,
    count=_COUNT,
    price=_USD,
    per={"type": "integer", "enum": [1, 1_000_000]},
    cost=_USD,
    list_price=_USD,
    list_cost=_USD,
)
_CALL: Final[Schema] = {
    "request_id": _TEXT,
    "message_id": _TEXT_OR_NULL,
    "at": _MOMENT,
    "model": _TEXT,
    "asked_model": _TEXT,
    "outcome": _TEXT,
    "kind": _TEXT,
    "http_status": _COUNT,
    "stop_reason": _TEXT_OR_NULL,
    "usage": _object(
        input_tokens=_COUNT,
        cache_write_5m_tokens=_COUNT,
        cache_write_1h_tokens=_COUNT,
        cache_read_tokens=_COUNT,
        output_tokens=_COUNT,
        web_searches=_COUNT,
    ),
    "currency": _CURRENCY,
    "price_version": _COUNT,
    "lines": {"type": "array", "items": _LINE},
    "notes": {"type": "array", "items": _TEXT},
    "cost": _USD,
    "waived": _USD,
    "shortfall": _USD,
    "charged": _USD,
    "refunded": _USD,
    "list_cost": _USD,
}
_REQUEST: Final = _object(
    type={"const": "request"},
    **_CALL,
    key_id=_COUNT,
    session=_TEXT_OR_NULL,
    agent=_TEXT_OR_NULL,
    held=_USD_OR_NULL,
    streamed={"type": "boolean"},
    attempts=_COUNT,
    first_byte_ms=_COUNT_OR_NULL,
    duration_ms=_COUNT,
)
_RECEIPT: Final = _object(
    receipt=_object(
        type={"const": "receipt"},
        version={"const": 1},
        issuer=_object(name=_TEXT, url=_TEXT),
        issued_at=_MOMENT,
        account_id=_COUNT,
        key=_TEXT_OR_NULL,
        **_CALL,
    ),
    signature=_object(algorithm={"const": "Ed25519"}, key_id=_TEXT, value=_TEXT),
)
_STATUSLINE: Final = _object(
    type={"const": "statusline"},
    currency=_CURRENCY,
    text=_TEXT,
    posted=_USD,
    held=_USD,
    free=_USD,
    spent_today=_USD,
    session=_TEXT_OR_NULL,
    spent_session=_USD_OR_NULL,
)
_EXPECTED: Final = _object(expected=_COUNT, at_most=_COUNT)
_QUOTE: Final = _object(
    type={"const": "quote"},
    currency=_CURRENCY,
    model=_TEXT,
    stream={"type": "boolean"},
    max_tokens=_COUNT,
    price_version=_COUNT,
    input_tokens=_EXPECTED,
    output_tokens=_EXPECTED,
    expected_cost=_USD,
    expected_from=_TEXT,
    highest_cost=_USD,
    hold=_USD,
    least_hold=_USD,
    free=_USD,
    spend_limit_left=_USD_OR_NULL,
    missing=_USD,
    affordable_max_tokens=_COUNT,
    admitted={"type": "string", "enum": ["yes", "if_counted", "no"]},
    refusal={
        "anyOf": [
            _object(status=_COUNT, type=_TEXT, message=_TEXT),
            {"type": "null"},
        ]
    },
)

"""The endpoints by which a customer finds out what is wrong: what the server sees of a call, and a test stream."""

from typing import Final

from farebox import errors
from farebox.web.docs.endpoint import EVERYWHERE, Endpoint, Schema

_REFUSALS: Final = (*EVERYWHERE, errors.RateLimited)
_FINDING: Final[Schema] = {
    "type": "object",
    "required": ["check", "status", "words"],
    "properties": {
        "check": {"type": "string"},
        "status": {"enum": ["ok", "warn", "fail"]},
        "words": {"type": "string"},
    },
}


def doctor_endpoints() -> tuple[Endpoint, ...]:
    """Describe them."""
    return (
        Endpoint(
            slug="doctor",
            method="GET",
            path="/v1/doctor",
            title="Find out what is wrong",
            words="What the server sees of your calls: the address and the credential they come with, the balance, "
            "what the key may spend and ask for, and which models are served at the moment. Free. The script at "
            "`/doctor` asks it for you.",
            fields=(),
            example=None,
            answer={
                "type": "object",
                "required": ["type", "well", "findings"],
                "properties": {
                    "type": {"const": "doctor"},
                    "well": {"type": "boolean"},
                    "findings": {"type": "array", "items": _FINDING},
                },
            },
            answer_example={
                "type": "doctor",
                "well": True,
                "findings": [
                    {"check": "credential", "status": "ok", "words": "the key comes in x-api-key"},
                    {"check": "balance", "status": "ok", "words": "$12.34 are free"},
                ],
            },
            refusals=_REFUSALS,
        ),
        Endpoint(
            slug="doctor-stream",
            method="GET",
            path="/v1/doctor/stream",
            title="Get a test stream",
            words="Eleven server-sent pings, a tenth of a second apart. If they come all at once, something between "
            "you and the server holds streams back. Free.",
            fields=(),
            example=None,
            answer={"type": "string"},
            answer_example={"type": "ping", "piece": 0, "of": 10},
            refusals=_REFUSALS,
            only_streams=True,
        ),
    )

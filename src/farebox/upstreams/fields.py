"""The settings of an upstream as a form, on a page or in a command: which there are for a kind, and reading them."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct, inspect

from farebox.secret import Secret
from farebox.upstreams.checks import problems, sendable
from farebox.upstreams.kinds.make import ANTHROPIC_URL, usual_url
from farebox.upstreams.settings import UpstreamKind, UpstreamSettings

KINDS: Final[Mapping[str, str]] = {
    "anthropic": "The Messages API: Anthropic, another Farebox, vLLM, llama.cpp, Ollama",
    "bedrock": "Amazon Bedrock, with an access key or a Bedrock API key",
    "vertex": "Google Vertex AI, with a service account",
    "foundry": "Microsoft Foundry, with a key or an application in Entra",
    "chat": "OpenAI's Chat Completions, translated: vLLM, llama.cpp, Ollama, OpenRouter, DeepSeek, OpenAI",
    "simulator": "Made-up answers, for trials: nothing is sent anywhere",
}
"""What each kind is, in words for operators."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TEXT_CHARS: Final = 2_000
_SECRET_CHARS: Final = 20_000
_MODELS_MOST: Final = 200
_LARGEST: Final = 10_000_000
_DOCUMENTS: Final = frozenset({"service_account"})
"""Secrets that are more than a word."""
_URLS: Final[Mapping[str, str]] = {
    "anthropic": ANTHROPIC_URL,
    "bedrock": "as its region has it",
    "vertex": "as its region has it",
    "foundry": "as its resource has it",
    "simulator": "one inside the process that serves",
}
_BARE: Final = frozenset({"name", "kind"})
"""What an upstream keeps as long as it is there."""


class Field(Struct, frozen=True):
    """One setting in a form. `kinds` are those that have it; none: all. `lines`: how many it is written in."""

    name: str
    title: str
    help: str
    kinds: tuple[str, ...] = ()
    lines: int = 1
    usual: str = ""
    """What holds when it is left empty, in words."""
    more: bool = False
    """Whether few ever set it."""


FIELDS: Final = (
    Field(
        "base_url",
        "Base URL",
        "Without /v1; for kind chat with it. It is you who is trusted here: it may be any address this server reaches, "
        "private ones included.",
    ),
    Field(
        "api_key",
        "API key",
        "Kept sealed, and never shown again.",
        ("anthropic", "bedrock", "foundry", "chat", "simulator"),
    ),
    Field(
        "api", "API", "By InvokeModel, or by the endpoint that speaks the Messages API.", ("bedrock",), usual="invoke"
    ),
    Field("region", "Region", "Such as us-east-1 at AWS; us-east5, global or eu at Google.", ("bedrock", "vertex")),
    Field("access_key_id", "Access key", "Of AWS; or say an API key of Bedrock.", ("bedrock",)),
    Field("secret_access_key", "Secret access key", "Kept sealed, and never shown again.", ("bedrock",)),
    Field("session_token", "Session token", "Of temporary credentials, which are not renewed.", ("bedrock",), lines=3),
    Field("project", "Project", "Its id.", ("vertex",), usual="the service account's own"),
    Field("service_account", "Service account", "Its key file, JSON. Kept sealed.", ("vertex",), lines=6),
    Field("resource", "Resource", "Its name in Azure.", ("foundry",)),
    Field("tenant_id", "Tenant", "Of an application in Entra; or say an API key.", ("foundry",)),
    Field("client_id", "Client id", "Of the application.", ("foundry",)),
    Field("client_secret", "Client secret", "Kept sealed, and never shown again.", ("foundry",)),
    Field(
        "authority",
        "Authority",
        "Where tokens of Entra are had.",
        ("foundry",),
        usual="https://login.microsoftonline.com",
    ),
    Field(
        "drop_betas",
        "Betas to leave out",
        "Names in anthropic-beta that this cloud refuses.",
        ("bedrock", "vertex", "foundry"),
    ),
    Field(
        "output_tokens",
        "Output tokens",
        "The most it writes at once; a larger max_tokens is lowered to it.",
        ("chat",),
        usual="as asked for",
    ),
    Field("max_tokens_as", "Name of max_tokens", "What this server calls it.", ("chat",), usual="max_tokens"),
    Field("thinking", "Thinking", "How a wish for it is put.", ("chat",), usual="off"),
    Field("thinking_history", "Earlier thinking", "What becomes of it in later calls.", ("chat",), usual="drop"),
    Field(
        "later_system",
        "Later system messages",
        "Whose words they are put as: models' templates may allow none after the first.",
        ("chat",),
        usual="system",
    ),
    Field("takes", "Takes as well", "Of top_k, pdf and continuous_usage, what this server understands.", ("chat",)),
    Field(
        "models",
        "Models it serves",
        "One a line, or with commas between, by id or alias; “id = name” where this upstream has its own name for it.",
        lines=4,
        usual="all that are sold",
    ),
    Field("weight", "Weight", "Its share of the calls, 0 to 1000; 0: only when no other is healthy.", usual="1"),
    Field(
        "priority",
        "Priority",
        "Lower numbers are called first; higher ones only when none of those is able or has room.",
        usual="0",
        more=True,
    ),
    Field(
        "concurrency",
        "Calls at once",
        "Further calls go elsewhere, or wait shortly.",
        usual="as many as connections",
        more=True,
    ),
    Field(
        "organization",
        "Organization",
        "The same name for upstreams of one account: thinking and caches of one are good at all of them.",
        usual="its own",
        more=True,
    ),
    Field("connections", "Connections", "Open at most; further calls wait for one.", usual="1000", more=True),
    Field("connect_s", "Seconds to connect", "How long a connection may take.", usual="as in [limits]", more=True),
    Field(
        "first_byte_s",
        "Seconds to the first byte",
        "How long an answer may take to begin.",
        usual="as in [limits]",
        more=True,
    ),
    Field(
        "stall_s",
        "Seconds of silence",
        "How long an answer that has begun may pause.",
        usual="as in [limits]",
        more=True,
    ),
    Field(
        "batches", "Message batches", "Whether it has message batches of its own.", usual="as its kind has", more=True
    ),
    Field("speed", "Output tokens a second", "0: as fast as possible.", ("simulator",), usual="60"),
)
"""Every setting but name and kind, in the order of the form."""


def fields_of(kind: str) -> list[Field]:
    """Give the fields of a kind, in the order of the form."""
    return [field for field in FIELDS if not field.kinds or kind in field.kinds]


def usual_of(field: Field, kind: str) -> str:
    """Say what holds when a field is left empty."""
    return _URLS.get(kind, "") if field.name == "base_url" else field.usual


def is_secret(name: str) -> bool:
    """Tell whether a setting is never shown."""
    return _types()[name] is None


def secrets_of(settings: UpstreamSettings) -> dict[str, str]:
    """Give what is secret about an upstream, in the clear: to be sealed, and nothing else."""
    found = {name: getattr(settings, name) for name in _types() if is_secret(name)}
    return {name: secret.reveal() for name, secret in found.items() if secret}


def plain_of(settings: UpstreamSettings) -> dict[str, Any]:
    """Give what is not secret and not as usual, as plain values."""
    usual = UpstreamSettings(name=settings.name, kind=settings.kind)
    names = [name for name in _types() if not is_secret(name)]
    kept = [name for name in names if name in _BARE or getattr(settings, name) != getattr(usual, name)]
    return {name: msgspec.to_builtins(getattr(settings, name)) for name in kept}


def from_plain(values: Mapping[str, Any], secrets: Mapping[str, str]) -> UpstreamSettings:
    """Make settings of what was kept. Raises ValueError for what this version does not know."""
    sealed = {name: Secret(text) for name, text in secrets.items() if name in _types() and is_secret(name)}
    try:
        known = msgspec.convert(dict(values), UpstreamSettings)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    return msgspec.structs.replace(known, **sealed)


def texts_of(settings: UpstreamSettings) -> dict[str, str]:
    """Give the settings that are not secret as a form shows them; those that are as usual are left empty."""
    return {name: _show(value) for name, value in plain_of(settings).items() if name not in _BARE}


def said_by(settings: UpstreamSettings) -> set[str]:
    """Name the settings that count as given (checks.problems): whoever serves at a URL of its own may want no key."""
    said = {name for name in _types() if getattr(settings, name)}
    own = settings.base_url and settings.base_url.rstrip("/") != usual_url(settings)
    return said | {"api_key"} if settings.kind == "anthropic" and own else said


def read_name(text: str) -> str:
    """Read the name of a new upstream. Raises ValueError, in words that go on from "name"."""
    if not _NAME.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores, and begin with no sign")
    return text


def read_kind(text: str) -> UpstreamKind:
    """Read a kind of upstream. Raises ValueError, in words that go on from "kind"."""
    for kind in get_args(UpstreamKind):
        if kind == text:
            return kind  # type: ignore[no-any-return]
    raise ValueError(f"must be one of {', '.join(get_args(UpstreamKind))}")


def read_fields(
    name: str, kind: UpstreamKind, texts: Mapping[str, str], kept: Mapping[str, str], sold: Mapping[str, str]
) -> tuple[UpstreamSettings, dict[str, str]]:
    """Read a form; answers what is wrong with it, by setting, in words that go on from its name.

    `kept` are the secrets that stay where the form says nothing, empty where they are not looked up; `sold` the ids of
    models by all their names.
    """
    wrong: dict[str, str] = {}
    values: dict[str, Any] = {}
    for field in fields_of(kind):
        text = texts.get(field.name, "").strip()
        try:
            if is_secret(field.name):
                values[field.name] = Secret(_read_secret(field, text) or kept.get(field.name, ""))
            elif field.name == "models":
                values["models"] = _read_models(text, sold)
            elif text:
                values[field.name] = _read_value(field.name, text)
        except ValueError as error:
            wrong[field.name] = str(error)
    settings = UpstreamSettings(name=name, kind=kind, **values)
    said = said_by(settings) | kept.keys()
    for field_name, problem in problems(settings, said):
        wrong.setdefault(field_name, _for_forms(problem))
    return settings, wrong


def _for_forms(problem: str) -> str:
    """Take out of a problem what only a file can say."""
    return problem.replace('it must be "env:NAME", "file:PATH" or the key itself', "this upstream needs it")


def _read_secret(field: Field, text: str) -> str:
    if len(text) > _SECRET_CHARS:
        raise ValueError(f"is longer than {_SECRET_CHARS:,} characters")
    if text and field.name not in _DOCUMENTS and not sendable(text):
        raise ValueError("is no key: one is of letters, digits and signs, without spaces or line breaks")
    return text


def _read_models(text: str, sold: Mapping[str, str]) -> tuple[str, ...] | dict[str, str]:
    """Read models and what the upstream calls them. Raises ValueError for one that is not sold."""
    lines = [line.strip() for line in text.replace(",", "\n").splitlines() if line.strip()]
    if len(lines) > _MODELS_MOST:
        raise ValueError(f"are {len(lines)}; {_MODELS_MOST} can be named")
    theirs: dict[str, str] = {}
    for line in lines:
        said, _, name = (part.strip() for part in line.partition("="))
        if said not in sold:
            near = difflib.get_close_matches(said, sold, 1)
            hint = f"did you mean {near[0]}?" if near else "it must be the id of a model that is"
            raise ValueError(f"name “{said[:60]}”, which is not sold; {hint}")
        if len(name) > _TEXT_CHARS or not (name or said).isprintable():
            raise ValueError(f"name something for {said} that is no name")
        theirs[sold[said]] = name or said
    return theirs if "=" in text else tuple(theirs)


def _read_value(name: str, text: str) -> Any:
    """Read one value that is not secret. Raises ValueError."""
    if len(text) > _TEXT_CHARS:
        raise ValueError(f"is longer than {_TEXT_CHARS:,} characters")
    if not all(char.isprintable() or char in "\r\n\t" for char in text):
        raise ValueError("has characters that cannot be printed")
    type_ = next(one.type for one in msgspec.structs.fields(UpstreamSettings) if one.name == name)
    lists = isinstance(_types()[name], inspect.VarTupleType)
    try:
        value = msgspec.convert(text.replace(",", " ").split() if lists else text, type_, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"is “{text[:60]}”; it must be {_expected(_types()[name])}") from error
    if isinstance(value, int | float) and not value <= _LARGEST:
        raise ValueError(f"is “{text[:60]}”; it must be a number up to {_LARGEST:,}")
    return value


def _expected(type_: inspect.Type | None) -> str:
    match type_:
        case inspect.IntType(ge=least, le=most) | inspect.FloatType(ge=least, le=most):
            number = "a whole number" if isinstance(type_, inspect.IntType) else "a number"
            if type_.gt is not None:
                return f"{number} above {type_.gt:g}"
            if least is not None and most is not None:
                return f"{number} from {least} to {most}"
            return f"{number} of at least {least:g}" if least is not None else number
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=choices):
            return " or ".join(map(str, choices))
        case inspect.VarTupleType(item_type=inspect.LiteralType(values=choices)):
            return f"some of {', '.join(map(str, choices))}"
        case _:
            return "a text"


def choices_of(name: str) -> list[str]:
    """Give what a setting can be where there is a choice; else nothing."""
    match _types()[name]:
        case inspect.BoolType():
            return ["true", "false"]
        case inspect.LiteralType(values=choices):
            return [str(choice) for choice in choices]
        case _:
            return []


def _types() -> dict[str, inspect.Type | None]:
    """Give the bare type of every setting; None for what is secret."""
    info = inspect.type_info(UpstreamSettings)
    assert isinstance(info, inspect.StructType)
    return dict(_bare(info.fields))


def _bare(fields: tuple[inspect.Field, ...]) -> Iterator[tuple[str, inspect.Type | None]]:
    for field in fields:
        type_ = field.type
        while isinstance(type_, inspect.Metadata | inspect.UnionType):
            if isinstance(type_, inspect.Metadata):
                type_ = type_.type
            else:
                type_ = next(one for one in type_.types if not isinstance(one, inspect.NoneType))
        secret = isinstance(type_, inspect.CustomType) and type_.cls is Secret
        yield field.name, None if secret else type_


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "\n".join(f"{name} = {theirs}" for name, theirs in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)

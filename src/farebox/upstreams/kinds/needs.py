"""What each kind of upstream must be told, and what means nothing to it: checked before anything is made of it."""

import re
from collections.abc import Container, Iterator, Mapping
from typing import Final

from farebox.secret import Secret
from farebox.upstreams.kinds.tokens import is_private_way
from farebox.upstreams.kinds.vertex import read_service_account
from farebox.upstreams.settings import UpstreamSettings

_PLACE: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_PROJECT: Final = re.compile(r"[a-z0-9]+(?:[.:-][a-z0-9]+)*")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "batches": ("anthropic", "simulator"),
    "api": ("bedrock",),
    "region": ("bedrock", "vertex"),
    "access_key_id": ("bedrock",),
    "secret_access_key": ("bedrock",),
    "session_token": ("bedrock",),
    "project": ("vertex",),
    "service_account": ("vertex",),
    "resource": ("foundry",),
    "tenant_id": ("foundry",),
    "client_id": ("foundry",),
    "client_secret": ("foundry",),
    "authority": ("foundry",),
    "drop_betas": ("bedrock", "vertex", "foundry"),
    "max_tokens_as": ("chat",),
    "output_tokens": ("chat",),
    "thinking": ("chat",),
    "thinking_history": ("chat",),
    "later_system": ("chat",),
    "takes": ("chat",),
}
"""The kinds that a setting is for; those not named here are for all."""


def faults_of(settings: UpstreamSettings, said: Container[str]) -> Iterator[tuple[str, str]]:
    """Tell what is wrong with an upstream's settings: the name of a setting, and how the sentence goes on.

    `said` are the settings that were given; secrets among them may be empty here, when they are not looked up.
    """
    defaults = UpstreamSettings(name="", kind=settings.kind)
    for field, kinds in _OF.items():
        if settings.kind not in kinds and getattr(settings, field) != getattr(defaults, field):
            yield field, f"is for upstreams of kind {' or '.join(quoted(kind) for kind in kinds)}; leave it out"
    match settings.kind:
        case "bedrock":
            yield from _of_bedrock(settings, said)
        case "vertex":
            yield from _of_vertex(settings, said)
        case "foundry":
            yield from _of_foundry(settings, said)
        case "chat":
            yield from _of_chat(settings)


def quoted(text: str) -> str:
    """Quote a text as TOML writes it."""
    return f'"{text}"'


def _of_bedrock(settings: UpstreamSettings, said: Container[str]) -> Iterator[tuple[str, str]]:
    if not _PLACE.fullmatch(settings.region):
        yield "region", f'is {quoted(settings.region)}; it must be a region of AWS such as "us-east-1"'
    if "api_key" in said:
        for field in ("access_key_id", "secret_access_key"):
            if field in said and getattr(settings, field):
                yield field, "stands beside api_key; say one or the other"
    elif not settings.access_key_id or "secret_access_key" not in said:
        yield "access_key_id", "and secret_access_key are missing, or an api_key of Bedrock; say one or the other"
    if not isinstance(settings.models, dict):
        yield "models", 'must be a table of what Bedrock calls them: { "claude-sonnet-4-6" = "us.anthropic.…" }'


def _of_vertex(settings: UpstreamSettings, said: Container[str]) -> Iterator[tuple[str, str]]:
    if not _PLACE.fullmatch(settings.region):
        yield "region", f'is {quoted(settings.region)}; it must be a location such as "us-east5", "global" or "eu"'
    if "service_account" not in said:
        yield "service_account", 'is missing; it must be the key file of a service account: "file:PATH"'
    elif settings.service_account:
        try:
            account = read_service_account(settings.service_account)
        except ValueError as error:
            yield "service_account", str(error)
            return
        if not _PROJECT.fullmatch(settings.project or account.project_id):
            yield (
                "project",
                f"is {quoted(settings.project)}; it must be the id of a project, unless the key file has one",
            )


def _of_foundry(settings: UpstreamSettings, said: Container[str]) -> Iterator[tuple[str, str]]:
    if not settings.base_url and not _NAME.fullmatch(settings.resource):
        yield "resource", f'is {quoted(settings.resource)}; it must be the name of a resource such as "my-resource"'
    entra = [field for field in ("tenant_id", "client_id", "client_secret") if field in said]
    if "api_key" in said and any(_given(getattr(settings, field)) for field in entra):
        yield "api_key", "stands beside tenant_id, client_id or client_secret; say one or the other"
    elif "api_key" not in said:
        for field in ("tenant_id", "client_id", "client_secret"):
            if field not in said:
                yield field, "is missing; tenant_id, client_id and client_secret are needed, or an api_key"
        if settings.tenant_id and not _NAME.fullmatch(settings.tenant_id):
            yield "tenant_id", f"is {quoted(settings.tenant_id)}; it must be the id or the domain of a tenant"
    if not is_private_way(settings.authority):
        yield (
            "authority",
            f'is {quoted(settings.authority)}; it must be a URL such as "https://login.microsoftonline.com"',
        )


def _of_chat(settings: UpstreamSettings) -> Iterator[tuple[str, str]]:
    if not settings.base_url:
        yield "base_url", 'is missing; it must be the URL of a server, such as "http://localhost:8000/v1"'
    elif settings.base_url.rstrip("/").endswith("/chat/completions"):
        yield "base_url", f"is {quoted(settings.base_url[:60])}; leave out the /chat/completions, it is added"


def _given(value: str | Secret) -> bool:
    return bool(value)

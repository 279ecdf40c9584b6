"""From settings to a kind."""

from typing import Final

from farebox.http.client import read_origin
from farebox.upstreams.kinds.anthropic import Anthropic
from farebox.upstreams.kinds.bedrock import BedrockInvoke, BedrockMessages, Credential
from farebox.upstreams.kinds.chat import Chat, Manner
from farebox.upstreams.kinds.clouds import CLOUD_BETAS
from farebox.upstreams.kinds.foundry import Foundry, entra_tokens
from farebox.upstreams.kinds.kind import Kind
from farebox.upstreams.kinds.sigv4 import AwsKey
from farebox.upstreams.kinds.tokens import Tokens
from farebox.upstreams.kinds.vertex import Assertions, Vertex, read_service_account
from farebox.upstreams.settings import UpstreamSettings

ANTHROPIC_URL: Final = "https://api.anthropic.com"


def usual_url(settings: UpstreamSettings) -> str:
    """Give the base URL of an upstream that names none; empty when it must."""
    match settings.kind:
        case "anthropic":
            return ANTHROPIC_URL
        case "bedrock" if settings.region and settings.api == "messages":
            return f"https://bedrock-mantle.{settings.region}.api.aws/anthropic"
        case "bedrock" if settings.region:
            china = ".cn" if settings.region.startswith("cn-") else ""
            return f"https://bedrock-runtime.{settings.region}.amazonaws.com{china}"
        case "vertex" if settings.region == "global":
            return "https://aiplatform.googleapis.com"
        case "vertex" if settings.region in {"us", "eu"}:
            return f"https://aiplatform.{settings.region}.rep.googleapis.com"
        case "vertex" if settings.region:
            return f"https://{settings.region}-aiplatform.googleapis.com"
        case "foundry" if settings.resource:
            return f"https://{settings.resource}.services.ai.azure.com/anthropic"
        case _:
            return ""


def make_kind(settings: UpstreamSettings) -> Kind:
    """Make the kind that an upstream's settings ask for. Raises ValueError for credentials that cannot be used."""
    match settings.kind:
        case "anthropic" | "simulator":
            return Anthropic(settings.api_key)
        case "bedrock":
            return _make_bedrock(settings)
        case "vertex":
            return _make_vertex(settings)
        case "chat":
            return _make_chat(settings)
        case "foundry":
            tokens = None
            if settings.tenant_id:
                tokens = entra_tokens(
                    settings.authority, settings.tenant_id, settings.client_id, settings.client_secret
                )
            return Foundry(settings.api_key, tokens, dict.fromkeys(settings.drop_betas, ""))


def _make_bedrock(settings: UpstreamSettings) -> Kind:
    origin = read_origin(settings.base_url or usual_url(settings))
    key = AwsKey(settings.access_key_id, settings.secret_access_key, settings.session_token)
    credential = Credential(
        origin,
        service="bedrock-mantle" if settings.api == "messages" and "bedrock-runtime" not in origin.host else "bedrock",
        region=settings.region,
        key=key if settings.access_key_id else None,
        api_key=settings.api_key,
    )
    betas = {**CLOUD_BETAS, **dict.fromkeys(settings.drop_betas, "")}
    return BedrockMessages(credential, betas) if settings.api == "messages" else BedrockInvoke(credential, betas)


def _make_chat(settings: UpstreamSettings) -> Kind:
    manner = Manner(
        max_tokens_as=settings.max_tokens_as,
        output_tokens=settings.output_tokens,
        thinking=settings.thinking,
        thinking_history=settings.thinking_history,
        later_system=settings.later_system,
        takes=frozenset(settings.takes),
    )
    return Chat(read_origin(settings.base_url), settings.api_key, manner)


def _make_vertex(settings: UpstreamSettings) -> Kind:
    account = read_service_account(settings.service_account)
    return Vertex(
        Tokens(account.token_uri, Assertions(account).form),
        project=settings.project or account.project_id,
        region=settings.region,
        betas={**CLOUD_BETAS, **dict.fromkeys(settings.drop_betas, "")},
    )

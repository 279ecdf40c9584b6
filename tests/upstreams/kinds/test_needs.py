"""What a cloud must be told is asked for in words that help, wherever an upstream is entered."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from farebox.config import load_config
from farebox.errors import ConfigError, NotFound
from farebox.secret import Secret
from farebox.upstreams.kinds.kind import Ask
from farebox.upstreams.kinds.make import make_kind, usual_url
from farebox.upstreams.settings import UpstreamSettings
from tests.upstreams.kinds.clouds import Vertex

SONNET = 'models = { "claude-sonnet-4-6" = "us.anthropic.x" }'
KEY = 'access_key_id = "AKIA"\nsecret_access_key = "s"'
ELSEWHERE = '{"client_email":"a","private_key":"b","token_uri":"http://example.com/token"}'
WRONG = {
    "bedrock without a region": (f'kind = "bedrock"\n{KEY}\n{SONNET}', "region is"),
    "a region that leads elsewhere": (f'kind = "bedrock"\nregion = "x.evil.example/"\n{KEY}\n{SONNET}', "region is"),
    "bedrock without a key": (f'kind = "bedrock"\nregion = "us-east-1"\n{SONNET}', "access_key_id and secret"),
    "half a key": (
        f'kind = "bedrock"\nregion = "us-east-1"\naccess_key_id = "A"\n{SONNET}',
        "access_key_id and secret",
    ),
    "two credentials": (f'kind = "bedrock"\nregion = "us-east-1"\napi_key = "k"\n{KEY}\n{SONNET}', "beside api_key"),
    "bedrock without names": (f'kind = "bedrock"\nregion = "us-east-1"\n{KEY}', "models must be a table"),
    "another api": (f'kind = "bedrock"\napi = "converse"\n{KEY}', 'api is "converse"; it must be "invoke" or'),
    "vertex without an account": ('kind = "vertex"\nregion = "global"', "service_account is missing"),
    "no key file": ('kind = "vertex"\nregion = "global"\nservice_account = "secret"', "service_account is not the key"),
    "no json": ('kind = "vertex"\nregion = "global"\nservice_account = "{secret"', "service_account is no valid JSON"),
    "no key in it": (
        'kind = "vertex"\nregion = "global"\nservice_account = \'{"client_email":"a","private_key":"secret"}\'',
        "service_account holds a private_key that cannot be read",
    ),
    "tokens by plain http": (
        f"kind = 'vertex'\nregion = 'eu'\nservice_account = '{ELSEWHERE}'",
        "service_account holds a token_uri that is no https:// URL",
    ),
    "an authority by plain http": (
        'kind = "foundry"\nresource = "r"\napi_key = "k"\nauthority = "http://example.com"', "authority is",
    ),
    "an authority that is none": ('kind = "foundry"\nresource = "r"\napi_key = "k"\nauthority = "x"', "authority is"),
    "foundry without a resource": ('kind = "foundry"\napi_key = "k"', "resource is"),
    "a resource that leads elsewhere": ('kind = "foundry"\napi_key = "k"\nresource = "evil.example/"', "resource is"),
    "foundry without a key": ('kind = "foundry"\nresource = "r"', "tenant_id is missing"),
    "half an application": ('kind = "foundry"\nresource = "r"\ntenant_id = "t"', "client_secret is missing"),
    "a tenant that leads elsewhere": (
        'kind = "foundry"\nresource = "r"\ntenant_id = "../x"\nclient_id = "c"\nclient_secret = "s"', "tenant_id is",
    ),
    "a setting of another kind": ('kind = "anthropic"\napi_key = "k"\nregion = "x"', "region is for upstreams of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    settings, words = WRONG[case]
    path = tmp_path / "farebox.toml"
    path.write_text(f'[[upstreams]]\nname = "a"\n{settings}')
    with pytest.raises(ConfigError) as told:
        load_config(path, {})
    assert words in str(told.value)
    assert "secret" not in str(told.value).replace("client_secret", "").replace("secret_access_key", "")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = json.dumps({"client_email": "a", "private_key": pem.decode()})
    (tmp_path / "account.json").write_text(account)
    path = tmp_path / "farebox.toml"
    path.write_text(
        '[[upstreams]]\nname = "a"\nkind = "vertex"\nregion = "global"\nservice_account = "file:account.json"'
    )
    with pytest.raises(ConfigError, match="holds a private_key that is not of RSA"):
        load_config(path, {})


def test_each_place_has_its_address() -> None:
    """As in the clients of Anthropic's SDK."""

    def url(kind: str, **fields: str) -> str:
        return usual_url(UpstreamSettings(name="a", kind=kind, **fields))  # type: ignore[arg-type]

    assert url("bedrock", region="eu-west-1") == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    assert url("bedrock", region="cn-north-1") == "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"
    mantle = url("bedrock", region="us-east-1", api="messages")
    assert mantle == "https://bedrock-mantle.us-east-1.api.aws/anthropic"
    assert url("vertex", region="us-east5") == "https://us-east5-aiplatform.googleapis.com"
    assert url("vertex", region="global") == "https://aiplatform.googleapis.com"
    assert url("vertex", region="eu") == "https://aiplatform.eu.rep.googleapis.com"
    assert url("foundry", resource="mine") == "https://mine.services.ai.azure.com/anthropic"
    assert url("bedrock") == url("vertex") == url("foundry") == ""


def kinds() -> list[UpstreamSettings]:
    account = Secret(json.dumps(Vertex().account))
    return [
        UpstreamSettings(name="a", kind="bedrock", region="us-east-1", api_key=Secret("k")),
        UpstreamSettings(name="a", kind="bedrock", region="us-east-1", api="messages", api_key=Secret("k")),
        UpstreamSettings(name="a", kind="vertex", region="global", service_account=account),
        UpstreamSettings(name="a", kind="foundry", resource="mine", api_key=Secret("k")),
    ]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/messages/batches", "/v1/models"])
async def test_what_a_cloud_does_not_serve_is_not_asked_of_it(path: str) -> None:
    for settings in kinds():
        kind = make_kind(settings)
        assert kind.has("/v1/messages")
        assert kind.has("/v1/messages/count_tokens")
        assert not kind.has(path)
        with pytest.raises(NotFound):
            await kind.prepare(Ask(path=path, headers=[], body=b"{}"), "x")
        await kind.close()

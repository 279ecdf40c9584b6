"""Clouds that an operator enters by a form serve as those of the configuration do, their secrets sealed."""

import json
import tomllib

import pytest

from tests.gateway.play import books
from tests.stage import OpenStage
from tests.upstreams.kinds.clouds import PROFILE, Cloud, Foundry, Vertex, running
from tests.upstreams.kinds.test_clouds import COST, PLAIN, SECRETS, WAYS
from tests.web.operators import enter_admin

HERE = "/admin/upstreams"
BESIDE = '[[upstreams]]\nname = "sim"\nkind = "simulator"\nweight = 0'


def form_of(cloud: Cloud, way: str) -> tuple[str, dict[str, str]]:
    """Put the settings of a way as the form has them."""
    settings = tomllib.loads(WAYS[way][1])
    kind = settings.pop("kind")
    if isinstance(cloud, Vertex):
        settings["service_account"] = json.dumps(cloud.account, indent=2)
    if isinstance(cloud, Foundry):
        settings["authority"] = cloud.authority
    name = {"invoke": PROFILE, "messages": PLAIN, "foundry": "my-sonnet"}.get(way.partition(",")[0])
    secret = {"api_key", "secret_access_key", "session_token", "service_account", "client_secret"}
    fields = {f"secret_{key}" if key in secret else key: value for key, value in settings.items()}
    return kind, fields | {"models": f"claude-sonnet-4-6 = {name}" if name else ""}


@pytest.mark.parametrize("way", WAYS)
async def test_a_cloud_that_is_entered_serves_and_its_secrets_are_not_shown(open_stage: OpenStage, way: str) -> None:
    async with running(WAYS[way][0]()) as cloud, open_stage(upstreams=BESIDE) as stage:
        kind, fields = form_of(cloud, way)
        operator = await enter_admin(stage)
        form = await operator.get(f"{HERE}/new/of/{kind}")
        values = {"name": "cloud", "base_url": cloud.url, "reason": "more room", **fields}
        made = await operator.submit(form, f"{HERE}/new/of/{kind}", **values)
        assert made.path == HERE, made.words
        seen = [made, await operator.get(f"{HERE}/cloud/edit"), await operator.submit(made, f"{HERE}/cloud/test")]
        assert "It counted the tokens of a word" in seen[-1].words
        assert not [secret for secret in SECRETS for page in seen if secret in page.text]
        assert (await stage.ask(stage.alice))[0] == 200
        row = await books(stage, stage.alice)
        assert (row["upstream"], row["charged_nanos"]) == ("cloud", COST)
        kept = str(await stage.rows("SELECT settings, secrets FROM upstream"))
        assert not [secret for secret in SECRETS if secret in kept]

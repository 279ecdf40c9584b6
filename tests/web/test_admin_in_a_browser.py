"""The operator's pages in a real browser: no error, no barrier, nothing wider than a phone, in both themes."""

import re
from typing import Final, Literal

import pytest
from playwright.async_api import Browser

from tests.stage import MODEL, Stage
from tests.web.browse import account_of
from tests.web.operators import enter_admin
from tests.web.test_browser import chromium, lend, look, open_window
from tests.web.test_security import routes

__all__ = ["chromium"]
NO_PAGES: Final = re.compile(r"/(export|entry)\b|\.(csv|json)$")


def paths_of(stage: Stage, account_id: int) -> list[str]:
    """Give an address of every page that operators can look at."""
    values = {"account_id:int": str(account_id), "account_id": str(account_id), "model_id": MODEL}
    found = []
    for route in routes(stage):
        path = re.sub(r"\{([^}]+)\}", lambda name: values.get(name[1], name[0]), route.path)
        if path.startswith("/admin") and "GET" in (route.methods or set()) and "{" not in path:
            found.append(path)
    return [path for path in found if not NO_PAGES.search(path)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_no_page_of_the_operator_has_errors_barriers_or_a_sideways_scroll(
    chromium: Browser, stage: Stage, scheme: Literal["light", "dark"]
) -> None:
    operator = await enter_admin(stage)
    assert (await stage.ask(stage.alice))[0] == 200
    said = {"words": "Maintenance on Sunday from 06:00 to 06:30 UTC", "level": "warning"}
    assert (await operator.post("/admin/announcements", said)).status == 200
    dearer = {"base": "1", "sell_input": "2", "step": "publish", "reason": "a test"}
    assert (await operator.post(f"/admin/models/of/{MODEL}", dearer)).status == 200
    account_id = await account_of(stage, stage.alice.email)
    context, window = await open_window(chromium, stage, scheme=scheme)
    await lend(context, stage, operator.cookies)
    paths = paths_of(stage, account_id)
    assert len(paths) > 10
    wrong: list[str] = []
    for path in paths:
        wrong += await look(window, path)
    assert not wrong, "\n".join(wrong)

"""Files: all customers' are in one workspace upstream, and nobody sees, names or deletes another's."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import pytest

from farebox.gateway.ask import read_request
from farebox.gateway.batches.lines import write
from farebox.gateway.files.named import files_in
from farebox.http.exchange import Exchange
from farebox.http.failures import UpstreamError
from farebox.store.urls import is_postgres
from tests.gateway.play import USD, books, envelope, eventually, message
from tests.stage import MODEL, OpenStage, Person, Stage

ON = "[features]\nfiles = true\n"
PATH = "/api/proxy/v1/files"
BETA = {"anthropic-beta": "files-api-2025-04-14"}
CANARY = b"canary-5e1b77"
TWO = "\n".join(
    f'[[upstreams]]\nname = "{name}"\nkind = "simulator"\nspeed = {speed}'
    for name, speed in (("one", 0), ("two", 9999))
)


@pytest.fixture
async def stage(open_stage: OpenStage) -> AsyncIterator[Stage]:
    async with open_stage(ON, alice_usd=10_000) as opened:
        yield opened


def form(data: bytes = b"Hello", name: str = "hello.txt", **fields: str) -> bytes:
    parts = [
        f'--xx\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    head = f'--xx\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n'
    return "".join(parts).encode() + head.encode() + data + b"\r\n--xx--\r\n"


async def send(
    stage: Stage, person: Person, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    fields = {"x-api-key": person.key, "anthropic-version": "2023-06-01", **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    answer = await stage.client.request(method, path, raw, body, first_byte_s=30)
    return answer.status, json.loads(await answer.read(2**24))


async def upload(stage: Stage, person: Person, body: bytes | None = None) -> tuple[int, Any]:
    kind = {"content-type": "multipart/form-data; boundary=xx"}
    return await send(stage, person, "POST", f"{PATH}?beta=true", form() if body is None else body, BETA | kind)


async def uploaded(stage: Stage, person: Person, data: bytes = b"Hello") -> str:
    status, file = await upload(stage, person, form(data))
    assert status == 200, file
    return str(file["id"])


def document(*ids: str) -> dict[str, Any]:
    blocks = [{"type": "document", "source": {"type": "file", "file_id": file_id}} for file_id in ids]
    return {"messages": [{"role": "user", "content": [*blocks, {"type": "text", "text": "Look"}]}]}


@pytest.mark.parametrize("beta", [True, False])
async def test_the_sdk_as_it_is_uploads_lists_reads_uses_and_deletes(stage: Stage, beta: bool) -> None:  # noqa: FBT001
    async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key=stage.alice.key, max_retries=0) as client:
        files: Any = client.beta.files if beta else client.files
        made = await files.upload(file=("notes.txt", b"What was said", "text/plain"))
        assert (made.filename, made.mime_type, made.size_bytes) == ("notes.txt", "text/plain", 13)
        others = [(await files.upload(file=(f"{number}.txt", b"x", "text/plain"))).id for number in range(4)]
        listed = [file async for file in await files.list(limit=2)]
        assert [file.id for file in listed] == [*reversed(others), made.id]
        assert [file.id for file in (await files.list(ids=[others[0], "file_none"])).data] == [others[0]]
        assert (await files.retrieve_metadata(made.id)).id == made.id
        with pytest.raises(anthropic.BadRequestError, match="not downloadable"):
            await files.download(made.id)
        answer = await client.messages.create(model=MODEL, max_tokens=20, **document(made.id))
        assert answer.usage.output_tokens > 0
        counted = await client.messages.count_tokens(model=MODEL, **document(made.id))
        assert counted.input_tokens > 0
        assert (await files.delete(made.id)).id == made.id
        with pytest.raises(anthropic.NotFoundError):
            await files.retrieve_metadata(made.id)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model=MODEL, max_tokens=20, **document(made.id))
        assert len(stage.simulator.files.files) == 4


async def test_a_form_goes_up_as_it_came_with_its_headers_and_query(stage: Stage) -> None:
    body = form(bytes(range(256)) * 5, expires_in_seconds="3600")
    status, file = await upload(stage, stage.alice, body)
    assert status == 200
    request = stage.simulator.requests[-1]
    assert (request.body, request.target) == (body, "/v1/files?beta=true")
    assert request.header(b"anthropic-beta") == b"files-api-2025-04-14"
    assert request.header(b"content-type") == b"multipart/form-data; boundary=xx"
    assert file["expires_at"] is not None


async def test_another_accounts_file_is_as_unknown_as_one_that_never_was(stage: Stage) -> None:
    mine = await uploaded(stage, stage.alice)
    before = len(stage.simulator.requests)
    carol = await stage.person("carol@example.com", 10_000)
    for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        told = []
        for file_id in (mine, mine[:-1] + "x", "..", "%00"):
            status, body = await send(stage, carol, method, f"{PATH}/{file_id}{end}")
            assert (status, body["error"]["type"]) == (404, "not_found_error")
            told.append(body["error"]["message"].replace(file_id, "…"))
        assert len(set(told)) == 1
    status, body = await send(stage, carol, "GET", PATH)
    assert (status, body["data"], body["next_page"], body["first_id"]) == (200, [], None, None)
    for query in (f"ids%5B%5D={mine}", "scope_id=sesn_1"):
        assert (await send(stage, carol, "GET", f"{PATH}?{query}"))[1]["data"] == []
    for query in (f"after_id={mine}", f"before_id={mine}", f"page=page_{mine}"):
        assert (await send(stage, carol, "GET", f"{PATH}?{query}"))[0] == 400
    assert len(stage.simulator.requests) == before
    assert (await send(stage, stage.alice, "GET", f"{PATH}/{mine}"))[0] == 200
    sibling = await stage.sibling(stage.alice)
    assert (await send(stage, sibling, "GET", f"{PATH}/{mine}"))[0] == 200


def hidden(file_id: str) -> dict[str, bytes]:
    """Ways to name a file so that it might be overlooked: bodies by what they try."""
    block = {"type": "document", "source": {"type": "file", "file_id": file_id}}

    def body(*content: Any, **fields: Any) -> bytes:
        return json.dumps(message(messages=[{"role": "user", "content": list(content)}], **fields)).encode()

    plain = body(block)
    key = b'"file_id"'
    assert key in plain
    return {
        "plain": plain,
        "image": body({**block, "type": "image"}),
        "system": body({"type": "text", "text": "x"}, system=[block]),
        "tool_result": body({"type": "tool_result", "tool_use_id": "t", "content": [block]}),
        "within": body({"type": "document", "source": {"type": "content", "content": [block]}}),
        "block of another kind": body({"type": "mcp_tool_result", "content": [{"deep": [block]}]}),
        "block of tomorrow": body({"type": "x", "input": {"file_id": file_id}}),
        "container": body({"type": "container_upload", "file_id": file_id}),
        "list": body({"type": "x", "file_ids": ["file_none", file_id]}),
        "field": body({"type": "text", "text": "x"}, file_id=file_id),
        "tool": body(
            {"type": "text", "text": "x"}, tools=[{"type": "x_1", "name": "x", "config": {"file_ids": [file_id]}}]
        ),
        "escaped name": plain.replace(key, rb'"file\u005fid"'),
        "escaped letter": plain.replace(key, rb'"\u0066ile_id"'),
        "twice": plain.replace(key, b'"file_id":null,"file_id"'),
        "twice, last": plain.replace(file_id.encode() + b'"', file_id.encode() + b'","file_id":null'),
        "two types": body().replace(
            b"[]", b'[{"type":"tool_use","type":"x","input":{"file_id":"%b"}}]' % file_id.encode()
        ),
    }


@pytest.mark.parametrize("way", hidden("f"))
async def test_a_request_that_names_anothers_file_never_goes_up(stage: Stage, way: str) -> None:
    mine = await uploaded(stage, stage.alice)
    before = len(stage.simulator.requests)
    carol = await stage.person("carol@example.com", 10_000)
    body = hidden(mine)[way]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = await stage.post(carol, body, path=path)
        kind, words = envelope(await answer.read(2**20))
        assert (answer.status, kind) in {(404, "not_found_error"), (400, "invalid_request_error")}, words
    assert len(stage.simulator.requests) == before
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []


async def test_what_a_model_wrote_for_a_customers_own_tool_names_no_file(stage: Stage) -> None:
    schema = {"type": "object", "properties": {"file_id": {"type": "string"}}}
    messages = [
        {"role": "user", "content": 'Say "file_id": "file_x", or \\u0066.'},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "x", "input": {"file_id": "file_x"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done"}]},
    ]
    fields: dict[str, Any] = {"messages": messages, "tools": [{"name": "x", "input_schema": schema}]}
    assert (await stage.post(stage.alice, message(**fields))).status == 200


async def test_a_request_goes_where_its_file_is_and_files_of_two_places_do_not_go_together(
    open_stage: OpenStage,
) -> None:
    async with open_stage(ON, upstreams=TWO, alice_usd=10_000) as stage:
        first = await uploaded(stage, stage.alice)
        again = await uploaded(stage, stage.alice)
        places = await stage.rows("SELECT DISTINCT upstream FROM file")
        assert len(places) == 1  # together, so that one request can name both
        for _ in range(5):
            body = message(**document(first, again))
            answer = await stage.post(stage.alice, body)
            assert answer.status == 200
            await answer.read(2**24)
        assert await stage.rows("SELECT DISTINCT upstream FROM usage") == places
        other = "two" if places[0][0] == "one" else "one"
        await stage.gateway.store.write([("UPDATE file SET upstream = ? WHERE id = ?", (other, again))])
        answer = await stage.post(stage.alice, message(**document(first, again)))
        kind, words = envelope(await answer.read(2**20))
        assert (answer.status, kind) == (400, "invalid_request_error")
        assert "not in one place" in words


async def test_a_file_counts_as_a_whole_window_until_its_usage_is_known(stage: Stage) -> None:
    file_id = await uploaded(stage, stage.alice)
    status, quote = await send(
        stage, stage.alice, "POST", "/v1/messages/quote", json.dumps(message(**document(file_id))).encode()
    )
    assert (status, quote["input_tokens"]["at_most"]) == (200, 1_000_000)
    assert (await stage.post(stage.alice, message(**document(file_id)))).status == 200
    assert (await books(stage, stage.alice, had=10_000 * USD))["kind"] == "exact"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data; boundary=xx"),
        (b"--xx", "multipart/form-data; boundary=xx"),
        (form().replace(b'name="file"', b'name="fil"'), "multipart/form-data; boundary=xx"),
        (form().replace(b"--xx--", b""), "multipart/form-data; boundary=xx"),
        (form().replace(b"\r\n\r\n", b"\r\n"), "multipart/form-data; boundary=xx"),
        (form(), "multipart/form-data"),
        (form(), "application/json"),
        (form(), "multipart/form-data; boundary=yy"),
        (form(expires_in_seconds="1"), "multipart/form-data; boundary=xx"),
    ],
)
async def test_a_form_that_is_none_is_a_400_and_nobodys_file(stage: Stage, body: bytes, kind: str) -> None:
    status, answer = await send(stage, stage.alice, "POST", PATH, body, {"content-type": kind})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert await stage.rows("SELECT 1 FROM file") == []


async def test_size_number_and_bytes_of_files_have_limits(open_stage: OpenStage) -> None:
    limits = "file_bytes = 100000\nfiles = 2\nfiles_bytes = 90000"
    async with open_stage(ON, limits=limits) as stage:
        assert (await upload(stage, stage.alice, form(b"x" * 200_000)))[0] == 413
        first = await uploaded(stage, stage.alice, b"x" * 90_000)
        status, body = await upload(stage, stage.alice, form(b"x" * 80_000))
        assert (status, "together" in body["error"]["message"]) == (400, True)
        await send(stage, stage.alice, "DELETE", f"{PATH}/{first}")
        for _ in range(2):
            await uploaded(stage, stage.alice)
        status, body = await upload(stage, stage.alice)
        assert (status, "2 files" in body["error"]["message"]) == (400, True)
        assert (await upload(stage, await stage.person("carol@example.com")))[0] == 200


async def test_both_ways_of_paging_see_every_file_once(stage: Stage) -> None:
    made = [await uploaded(stage, stage.alice) for _ in range(5)][::-1]
    for cursor in ("after_id", "page"):
        seen: list[str] = []
        query = "limit=2"
        while query:
            _, page = await send(stage, stage.alice, "GET", f"{PATH}?{query}")
            seen += [file["id"] for file in page["data"]]
            after = page["last_id"] if cursor == "after_id" else page["next_page"]
            query = f"limit=2&{cursor}={after}" if page["has_more"] else ""
        assert seen == made
    _, page = await send(stage, stage.alice, "GET", f"{PATH}?limit=2&before_id={made[3]}")
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (made[1:3], True)
    for wrong in ("limit=0", "limit=1001", "page=x", f"after_id={made[0]}&before_id={made[1]}"):
        assert (await send(stage, stage.alice, "GET", f"{PATH}?{wrong}"))[0] == 400


async def test_a_file_that_is_gone_upstream_is_gone_here(stage: Stage) -> None:
    first, second = await uploaded(stage, stage.alice), await uploaded(stage, stage.alice)
    stage.simulator.files.files.clear()
    assert (await send(stage, stage.alice, "GET", f"{PATH}/{first}"))[0] == 404
    assert await send(stage, stage.alice, "DELETE", f"{PATH}/{second}") == (200, {"id": second, "type": "file_deleted"})
    assert await stage.rows("SELECT 1 FROM file") == []


async def test_an_upstream_in_trouble_is_told_of_and_tried_once_with_a_file(stage: Stage) -> None:
    stage.simulator.knobs = "error=500"
    status, body = await upload(stage, stage.alice)
    assert (status, body["error"]["type"]) == (502, "upstream_error")
    assert len(stage.simulator.requests) == 1
    stage.simulator.knobs = "error=400:billing_error"
    status, body = await upload(stage, stage.alice)
    assert (status, "credit" in body["error"]["message"]) == (502, False)
    stage.simulator.knobs = "close_before"
    assert (await upload(stage, stage.alice))[0] == 502
    stage.simulator.knobs = ""
    assert (await upload(stage, stage.alice))[0] == 200


async def test_files_of_closed_accounts_and_those_whose_time_is_over_are_deleted_upstream(stage: Stage) -> None:
    kept = await uploaded(stage, stage.alice)
    carol = await stage.person("carol@example.com")
    await uploaded(stage, carol)
    over = await uploaded(stage, stage.alice)
    store = stage.gateway.store
    await store.write([("UPDATE account SET status = 'closed' WHERE id = ?", (carol.account_id,))])
    await store.write([("UPDATE file SET expires_at = 1 WHERE id = ?", (over,))])

    async def is_swept() -> bool:
        assert stage.gateway.files is not None
        await stage.gateway.files.tick()
        return await stage.rows("SELECT id FROM file") == [(kept,)]

    await eventually(is_swept)  # once this process leads
    assert list(stage.simulator.files.files) == [kept]


async def test_what_a_tool_wrote_comes_down_as_it_comes_and_is_cut_where_it_is_cut(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await uploaded(stage, stage.alice)
    data, kind = bytes(range(256)) * 2**15, type(stage.simulator)
    whole, others = True, kind._file

    async def given(self: Any, exchange: Exchange, request: Any) -> None:
        if not request.path.endswith("/content"):
            await others(self, exchange, request)
            return
        exchange.start(200, [(b"content-type", b"application/octet-stream")], length=len(data) * (2 - whole))
        await write(exchange, data)
        if whole:
            exchange.finish()
        else:
            exchange.break_off(reset=False)

    monkeypatch.setattr(kind, "_file", given)
    headers = [(b"x-api-key", stage.alice.key.encode()), (b"anthropic-version", b"2023-06-01")]
    answer = await stage.client.request("GET", f"{PATH}/{file_id}/content", headers, b"", first_byte_s=30)
    assert (answer.status, answer.header(b"content-type")) == (200, b"application/octet-stream")
    assert await answer.read(2**24) == data
    whole = False
    answer = await stage.client.request("GET", f"{PATH}/{file_id}/content", headers, b"", first_byte_s=30)
    with pytest.raises(UpstreamError):
        await answer.read(2**25)


def test_a_file_is_found_below_much_that_names_none() -> None:
    block, deep = {"type": "document", "source": {"type": "file", "file_id": "file_a"}}, '{"file_ids":["file_c"]}'
    text = {"type": "text", "text": 'say "file_id", été ' * 300}
    messages = [{"role": "user", "content": [text] * 40}, {"role": "user", "content": [text, block, text]}]
    tool = {"type": "tool_use", "id": "t", "name": "x", "input": {"file_id": "not this", "long": "x" * 9000}}
    schema = {"name": "x", "input_schema": {"properties": {"file_id": {}}, "long": "x" * 9000}}
    body = json.dumps({"model": "m", "tools": [schema], "messages": [*messages, {"content": [tool, text]}]})
    twice = '{"file_id":"file_b","file\\u005fid":"file_d","x":' + "[" * 200 + deep + "]" * 200 + "}"
    long = json.dumps("y" * 9000)
    body = body[:-2] + f',{{"a":{long},"source":{twice},"source":{{}},"type":"tool_use","type":"x","input":{deep}}}]}}'
    assert files_in(read_request(body.encode())) == {"file_a", "file_b", "file_c", "file_d"}
    crowd = json.dumps({"model": "m", "messages": [{"content": [{"file_id": "file_a"}] * 3000}]})
    assert files_in(read_request(crowd.encode())) == {"file_a"}


def on_disk(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_what_is_in_a_file_is_kept_nowhere(stage: Stage, tmp_path: Path, database_url: str) -> None:
    file_id = await uploaded(stage, stage.alice, CANARY * 9)
    assert (await upload(stage, stage.alice, CANARY))[0] == 400
    assert (await stage.post(stage.alice, message(**document(file_id)))).status == 200
    await send(stage, stage.alice, "GET", f"{PATH}/{file_id}/content")
    if is_postgres(database_url):
        rows = repr(await stage.rows("SELECT * FROM file")) + repr(await stage.rows("SELECT * FROM usage"))
        assert CANARY.decode() not in rows
    assert [path for path in on_disk(tmp_path) if CANARY in path.read_bytes()] == []
    assert CANARY.decode() not in repr(stage.events)


async def test_files_in_batches_and_of_many_at_once_are_refused_in_words(stage: Stage) -> None:
    file_id = await uploaded(stage, stage.alice)
    item = {"custom_id": "a", "params": message(**document(file_id))}
    body = json.dumps({"requests": [item]}).encode()
    status, answer = await send(stage, stage.alice, "POST", "/v1/messages/batches", body)
    assert (status, "not in a batch" in answer["error"]["message"]) == (400, True)
    answers = await asyncio.gather(*(stage.post(stage.alice, message(**document(*map(str, range(101))))) for _ in "ab"))
    for one in answers:
        assert (one.status, "at most 100" in envelope(await one.read(2**20))[1]) == (400, True)


async def test_the_manual_tells_of_files_where_they_are_offered(stage: Stage) -> None:
    _, described = await send(stage, stage.bob, "GET", "/openapi.json")
    told = {(method, path) for path, methods in described["paths"].items() for method in methods if "/files" in path}
    one, content = (f"/v1/files{end}" for end in ("/{file_id}", "/{file_id}/content"))
    assert told == {("post", "/v1/files"), ("get", "/v1/files"), ("get", one), ("delete", one), ("get", content)}
    answer = await stage.client.request("GET", "/docs/offered.md", [], b"", first_byte_s=10)
    text = (await answer.read(2**20)).decode()
    assert "## Files" in text
    assert "`/v1/files`" not in text.partition("## What else is refused")[2]

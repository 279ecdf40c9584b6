"""Receipts on the command line: checked offline, in clear words, with exit codes to build on."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Farebox
from tests.stage import open_stage


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A receipt and a file of keys, as they were saved while a gateway ran that is gone by now."""
    return asyncio.run(save(tmp_path))


async def save(tmp_path: Path) -> tuple[Path, Path]:
    async with open_stage(tmp_path) as stage:
        assert (await stage.ask(stage.alice))[0] == 200
        ((request_id,),) = await stage.rows("SELECT request_id FROM usage")
        saved = []
        for name, path in (
            ("receipt.json", f"/v1/requests/req_{request_id.hex()}/receipt"),
            ("keys.json", "/.well-known/farebox-receipt-keys.json"),
        ):
            headers = [(b"x-api-key", stage.alice.key.encode())] if name == "receipt.json" else []
            answer = await stage.client.request("GET", path, headers, b"", first_byte_s=10)
            saved.append(tmp_path / name)
            saved[-1].write_bytes(await answer.read(2**20))
    return saved[0], saved[1]


def changed(path: Path, **fields: Any) -> None:
    told = json.loads(path.read_text())
    told["receipt"] |= fields
    path.write_text(json.dumps(told))


def test_a_receipt_is_checked_without_a_server(farebox: Farebox, signed: tuple[Path, Path]) -> None:
    receipt, keys = map(str, signed)
    told = farebox("receipt", "verify", receipt, "--keys", keys)
    assert told.code == 0
    assert told.out.startswith("Genuine: unchanged since it was signed by key ")
    figures = json.loads(signed[0].read_text())["receipt"]
    for words in (figures["request_id"], f"${figures['charged']}", "claude-sonnet-4-6", "finished (exact)"):
        assert words in told.out
    as_json = farebox("receipt", "verify", receipt, "--keys", keys, "--json")
    assert (as_json.code, as_json.json["genuine"], as_json.json["faults"]) == (0, True, [])
    assert as_json.json["receipt"] == figures


def test_a_file_may_be_written_anew_but_not_changed(farebox: Farebox, signed: tuple[Path, Path]) -> None:
    receipt, keys = signed
    told = json.loads(receipt.read_text())
    turned = {name: dict(reversed(list(value.items()))) for name, value in reversed(list(told.items()))}
    receipt.write_text(json.dumps(turned, indent=4))
    assert farebox("receipt", "verify", str(receipt), "--keys", str(keys)).code == 0
    changed(receipt, charged="0.00")
    refused = farebox("receipt", "verify", str(receipt), "--keys", str(keys))
    assert refused.code == 1
    assert refused.out == ("NOT GENUINE: the signature does not fit: something in it was changed after it was signed\n")
    as_json = farebox("receipt", "verify", str(receipt), "--keys", str(keys), "--json")
    assert (as_json.code, as_json.json["genuine"]) == (1, False)


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


BROKEN: list[tuple[str, Any, str]] = [
    ("no JSON", lambda text: text[:-9], "no JSON"),
    ("not an object", lambda _: "[]", "no signed receipt"),
    ("nothing in it", lambda _: "{}", "no signed receipt"),
    ("a number", lambda _: "7", "no signed receipt"),
    ("no signature", lambda text: json.dumps({"receipt": json.loads(text)["receipt"]}), "no signed receipt"),
    ("more beside it", lambda text: text[:-1] + ',"x":1}', "no signed receipt"),
    ("a name twice", lambda text: swap(text, '"charged":', '"charged":"0.00","charged":'), "twice"),
    ("a fraction", lambda text: swap(text, '"version":1', '"version":1.0'), "no whole number"),
    ("NaN", lambda text: swap(text, '"version":1', '"version":NaN'), "no whole number"),
    ("another algorithm", lambda text: swap(text, '"Ed25519"', '"none"'), "only Ed25519 is known"),
    ("another key", lambda text: swap(text, '"key_id":"', '"key_id":"x'), "none of the 1 keys"),
    ("half a signature", lambda text: swap(text, '"value":"', '"value":"AA'), "does not fit"),
    ("no base64", lambda text: swap(text, '"value":"', '"value":"%%'), "does not fit"),
    ("too deep", lambda _: '{"receipt":' + "[" * 50_000 + "]" * 50_000 + "}", "no JSON of ours"),
    ("too large", lambda text: text + " " * (1 << 20), "1,024 KiB"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_whatever_is_wrong_is_told(farebox: Farebox, signed: tuple[Path, Path], change: Any, words: str) -> None:
    receipt, keys = signed
    receipt.write_text(change(receipt.read_text()))
    told = farebox("receipt", "verify", str(receipt), "--keys", str(keys))
    assert (told.code, told.err) == (1, "")
    assert told.out.startswith("NOT GENUINE: ")
    assert words in told.out


def test_the_keys_of_another_gateway_do_not_do(farebox: Farebox, signed: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    strange = asyncio.run(save(other))[1].read_bytes()
    claimed = json.loads(strange)
    claimed["keys"][0]["kid"] = json.loads(signed[0].read_text())["signature"]["key_id"]
    for keys in (
        strange,
        json.dumps(claimed).encode(),
        b"{}",
        b'{"keys":[]}',
        b'{"keys":[{"kty":"RSA"}]}',
        b"nonsense",
    ):
        signed[1].write_bytes(keys)
        assert farebox("receipt", "verify", str(signed[0]), "--keys", str(signed[1])).code == 1


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serve the files of a directory."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_keys_come_from_the_books_from_beside_and_from_an_address(
    farebox: Farebox, signed: tuple[Path, Path], tmp_path: Path
) -> None:
    """What is exported is what is published; saved under its usual name it is found by itself."""
    told = farebox("receipt", "keys", "--config", str(signed[0].parent / "farebox.toml"))
    assert told.json == json.loads(signed[1].read_text())
    missing = farebox("receipt", "verify", str(signed[0]))
    assert (missing.code, "--keys FILE" in missing.err) == (2, True)
    Path("farebox-receipt-keys.json").write_text(told.out)
    assert farebox("receipt", "verify", str(signed[0])).code == 0
    assert farebox("receipt", "verify", "nothing.json").code == 2
    with serving(tmp_path) as url:
        assert farebox("receipt", "verify", str(signed[0]), "--keys", f"{url}/keys.json").code == 0
        nothing = farebox("receipt", "verify", str(signed[0]), "--keys", f"{url}/nothing")
        assert (nothing.code, "answered 404" in nothing.out) == (1, True)
    gone = farebox("receipt", "verify", str(signed[0]), "--keys", "http://127.0.0.1:9/keys.json")
    assert (gone.code, "could not be fetched" in gone.out) == (1, True)

"""Mail: letters reach the address they were written to, and one that cannot be sent holds up no other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from farebox.accounts.accounts import clean_email
from farebox.accounts.mail import MailSettings, Postman, letter
from farebox.errors import InvalidRequest
from tests.stage import Stage
from tests.web.browse import PASSWORD, browser_of, mailed_path, mails_to, make_key

CAROL = "carol@example.com"


class Server:
    """A mail server that takes what comes (RFC 5321)."""

    def __init__(self) -> None:
        self.recipients: list[str] = []
        self.letters: list[str] = []
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            if line.upper().startswith("RCPT TO:"):
                self.recipients.append(line[8:].strip("<>"))
            if line.upper() == "DATA":
                writer.write(b"354 go on\r\n")
                self.letters.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if line.upper() == "QUIT" else b"250 well\r\n")
        writer.close()


@asynccontextmanager
async def mail_server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def postman_of(stage: Stage, server: Server, failed: list[Any]) -> Postman:
    settings = MailSettings(host="127.0.0.1", port=server.port, tls="off", sender="farebox@example.com")
    return Postman(stage.gateway.store, settings, lambda *_, **facts: failed.append(facts))


async def test_a_letter_is_sent_once_to_its_address(stage: Stage) -> None:
    now_us, failed = stage.gateway.clock(), list[Any]()
    await stage.gateway.store.write([letter("alice@example.com", "Hello", "Good news: ü\n", now_us)])
    async with mail_server() as server:
        postman = postman_of(stage, server, failed)
        assert [await postman.send(now_us), await postman.send(now_us)] == [1, 0]
    assert server.recipients == ["alice@example.com"]
    assert "Subject: Hello" in server.letters[0]
    assert failed == []


async def test_a_letter_that_cannot_be_written_holds_up_no_other(stage: Stage) -> None:
    now_us, failed = stage.gateway.clock(), list[Any]()
    crooked = (
        "=?utf-8?q?a=0d=0ab?=@evil.example",
        "=?utf-8?q??=@evil.example",
        "=?utf-8?q?a=40b.example=2c?=@c.example",
    )
    for recipient in (*crooked, "alice@example.com"):
        await stage.gateway.store.write([letter(recipient, "Hello", "Hello\n", now_us)])
    async with mail_server() as server:
        await postman_of(stage, server, failed).send(now_us)
    assert server.recipients[-1] == "alice@example.com"
    assert set(server.recipients) <= {"alice@example.com", crooked[2]}, "nobody else than it was written to"
    assert len(failed) == 2
    rows = await stage.rows("SELECT tries, sent_at FROM outbox WHERE recipient IN (?, ?)", *crooked[:2])
    assert rows == [(1, None)] * 2


async def test_nobody_gets_mail_about_an_account_that_a_stranger_opened_with_their_address(stage: Stage) -> None:
    """But for the link that proves it: else forms would send words of anybody's own to anybody, without end."""
    mallory = browser_of(stage)
    await mallory.post("/signup", {"email": CAROL, "password": PASSWORD})
    await mallory.sign_in(CAROL)
    await make_key(stage, mallory, CAROL, "buy at spam.example")
    for _ in range(2):
        await browser_of(stage).sign_in(CAROL)
    assert [subject for subject, _ in await mails_to(stage, CAROL)] == ["Confirm your address for Farebox"]
    await mallory.submit(await mallory.get(await mailed_path(stage, CAROL)))
    await make_key(stage, mallory, CAROL, "laptop")
    assert [subject for subject, _ in await mails_to(stage, CAROL)][1:] == ["A new API key at Farebox"]


@pytest.mark.parametrize("local", ["=?utf-8?q?a=0d=0ab?=", "=?utf-8?q?alice=40corp.example=2c?=", "a.=?utf-8?q?b?="])
async def test_an_address_that_mail_programs_read_otherwise_is_none(stage: Stage, local: str) -> None:
    with pytest.raises(InvalidRequest):
        clean_email(f"{local}@evil.example")
    answer = await browser_of(stage).post("/signup", {"email": f"{local}@evil.example", "password": PASSWORD})
    assert answer.status == 422
    assert not await stage.rows("SELECT 1 FROM outbox")

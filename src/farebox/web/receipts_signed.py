"""Files for machines beside the pages: signed receipts, the keys they are checked with, the status line's script."""

import shlex
from importlib.resources import files

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.accounts.signing import KEYS_PATH
from farebox.books.call_receipts import Issuer, write_receipt
from farebox.books.log import find_call
from farebox.ids import read_request_id
from farebox.web.kit import Kit
from farebox.web.packing import packed


class SignedReceipts:
    """Receipts for whoever is signed in; keys and script for everybody."""

    def __init__(self, kit: Kit) -> None:
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock
        self._signing = kit.signing
        self._issuer = Issuer(kit.pages.site_name, kit.offer.public_url)
        self._script = statusline_script(kit.offer.base_url)

    def routes(self) -> list[Route]:
        return [
            Route(KEYS_PATH, self.keys),
            Route("/statusline.sh", self.statusline),
            Route("/dashboard/requests/{request_id}/receipt.json", self._visitors.signed_in(self.receipt)),
        ]

    async def keys(self, request: Request) -> Response:
        """Give the public halves of all keys that receipts were ever signed with."""
        keys = msgspec.json.format(msgspec.json.encode(self._signing.public_keys))
        answer = Response(keys, media_type="application/json")
        answer.headers["access-control-allow-origin"] = "*"
        answer.headers["cross-origin-resource-policy"] = "cross-origin"
        return packed(request, answer)

    async def statusline(self, request: Request) -> Response:
        return packed(request, Response(self._script, media_type="text/x-shellscript; charset=utf-8"))

    async def receipt(self, request: Request, me: Session) -> Response:
        try:
            call = await find_call(self._store, me.account_id, read_request_id(request.path_params["request_id"]))
        except ValueError:
            call = None
        if call is None:
            raise HTTPException(404)
        receipt = await write_receipt(self._store, me.account_id, call, self._issuer, self._clock())
        signed = msgspec.json.format(msgspec.json.encode(self._signing.sign(receipt)))
        headers = {"content-disposition": f'attachment; filename="receipt-{call.id}.json"'}
        return Response(signed + b"\n", media_type="application/json", headers=headers)


def statusline_script(base_url: str) -> str:
    """Give the script for Claude Code's status line, with this server's address in it."""
    text = files("farebox.web.docs").joinpath("text", "_statusline.sh.txt").read_text("utf-8")
    return text.replace("@BASE_URL@", shlex.quote(base_url))

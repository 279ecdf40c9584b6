"""Scripts that customers run: one points Claude Code here (/setup), one finds out what stands in its way (/doctor).

Asked for by curl they are shell scripts; a browser is led to the page of the manual that says what they do.
"""

import shlex
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from farebox.web.offer import Offer
from farebox.web.packing import packed


class Setup:
    """The same for everybody: no key is ever in them."""

    def __init__(self, offer: Offer) -> None:
        self._setup = _script("_setup.sh.txt", offer)
        self._doctor = _script("_doctor.sh.txt", offer)

    def routes(self) -> list[Route]:
        return [
            Route("/setup", self.setup),
            Route("/setup.sh", self.setup),
            Route("/doctor", self.doctor),
            Route("/doctor.sh", self.doctor),
        ]

    async def setup(self, request: Request) -> Response:
        return _told(request, self._setup, "set-it-up")

    async def doctor(self, request: Request) -> Response:
        return _told(request, self._doctor, "when-it-does-not-work")


def _told(request: Request, script: str, section: str) -> Response:
    by_name = request.url.path.endswith(".sh")
    if not by_name and "text/html" in request.headers.get("accept", ""):
        answer: Response = RedirectResponse(f"/docs/claude-code#{section}", 303)
    else:
        answer = packed(request, Response(script, media_type="text/x-shellscript; charset=utf-8"))
    answer.headers["vary"] = "accept, accept-encoding"
    return answer


def _script(name: str, offer: Offer) -> str:
    """Give a script with this server's addresses in it, quoted for a shell."""
    text = files("farebox.web.docs").joinpath("text", name).read_text("utf-8")
    plain = {"@SETUP_URL@": f"{offer.public_url}/setup", "@DOCTOR_URL@": f"{offer.public_url}/doctor"}
    quoted = {"@BASE_URL@": offer.base_url, "@KEYS_URL@": f"{offer.public_url}/dashboard/keys"}
    for mark, value in (*quoted.items(), *plain.items()):
        text = text.replace(mark, shlex.quote(value))
    return text

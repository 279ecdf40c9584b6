"""Every way an exchange with an upstream can fail, told apart by what the other side may have done with the request."""

from farebox.errors import FareboxError


class UpstreamError(FareboxError):
    """An exchange that failed. `sent` tells whether the request may have been acted upon."""

    sent = True


class ConnectFailed(UpstreamError):
    sent = False


class AnswerTimeout(UpstreamError):
    pass


class Stalled(UpstreamError):
    pass


class BadAnswer(UpstreamError):
    pass


class NoUsage(BadAnswer):
    """An answer that is whole, and says nothing usable of what it used: nothing can be charged for it."""


class Cut(UpstreamError):
    pass


class StaleConnection(UpstreamError):
    """A kept connection had been closed by the other side before it saw the request."""

    sent = False

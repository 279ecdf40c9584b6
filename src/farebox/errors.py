"""Every expected failure, drawn once: its HTTP status and wire type, raised where known, rendered in one place.

FareboxError
├── Refusal                  a customer's call is refused, in words that help (promise 10)
│   ├── InvalidRequest  400      ├── AuthenticationFailed  401
│   ├── InsufficientBalance 402  ├── PermissionDenied 403
│   ├── NotFound  404            │
│   ├── MethodNotAllowed 405     ├── RequestTimeout 408
│   ├── RequestTooLarge 413      ├── RateLimited  429
│   ├── UpstreamFailed 502       ├── Unavailable 503
│   └── InternalError 500        └── Overloaded 529
├── StoreUnavailable         the database cannot promise durability now
│   └── StoreUnreachable     no connection to it can be made
├── StoreConflict            a value that must be unique is taken
├── RailTrouble              a node, a processor or a source of rates does not answer as it should
│   └── WrongChain           ... or is about another chain than the configuration says: nothing of it counts
├── BrokenInvariant          the books would stop being true; the work is stopped and the numbers named
└── ConfigError              the configuration is wrong; says where and what would be right
"""


class FareboxError(Exception):
    pass


class Refusal(FareboxError):
    """A refused call. `retry` says whether trying again within a minute can help (`x-should-retry`)."""

    status = 500
    wire_type = "internal_error"
    retry = False

    def __init__(self, message: str, *, retry_after_s: int | None = None, error_code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.headers: list[tuple[bytes, bytes]] = []
        self.error_code = error_code


class InvalidRequest(Refusal):
    status = 400
    wire_type = "invalid_request_error"


class AuthenticationFailed(Refusal):
    status = 401
    wire_type = "authentication_error"


class InsufficientBalance(Refusal):
    status = 402
    wire_type = "insufficient_balance"


class PermissionDenied(Refusal):
    status = 403
    wire_type = "permission_error"


class NotFound(Refusal):
    status = 404
    wire_type = "not_found_error"


class MethodNotAllowed(Refusal):
    status = 405
    wire_type = "invalid_request_error"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(Refusal):
    status = 408
    wire_type = "timeout_error"
    retry = True


class RequestTooLarge(Refusal):
    status = 413
    wire_type = "request_too_large"


class RateLimited(Refusal):
    status = 429
    wire_type = "rate_limit_error"
    retry = True


class InternalError(Refusal):
    status = 500
    wire_type = "internal_error"
    retry = True


class UpstreamFailed(Refusal):
    status = 502
    wire_type = "upstream_error"
    retry = True


class Unavailable(Refusal):
    status = 503
    wire_type = "api_error"
    retry = True


class Overloaded(Refusal):
    status = 529
    wire_type = "overloaded_error"
    retry = True


class StoreUnavailable(FareboxError):
    pass


class StoreUnreachable(StoreUnavailable):
    pass


class StoreConflict(FareboxError):
    pass


class RailTrouble(FareboxError):
    pass


class WrongChain(RailTrouble):
    pass


class BrokenInvariant(FareboxError):
    pass


class ConfigError(FareboxError):
    pass

"""Where books can be: what a database URL says."""

from pathlib import Path


def is_postgres(url: str | Path) -> bool:
    """Tell whether a URL names PostgreSQL."""
    return str(url).startswith(("postgresql://", "postgres://"))


def without_password(url: str) -> str:
    """Write a database's URL as people may see it."""
    scheme, separator, rest = url.partition("://")
    if not separator or not is_postgres(url):
        return url
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}{at}{place.partition('?')[0]}"

"""Where books can be: what a database URL says, and what of it people may see."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

_SCHEMES: Final = ("postgresql://", "postgres://")
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:\[\]/?#]*)(:\d{1,5})?")
_TOLD_TO_TOOLS: Final = {
    *("host", "port", "dbname", "user", "passfile", "target_session_attrs"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl"),
}


def is_postgres(url: str | Path) -> bool:
    """Tell whether a URL names PostgreSQL."""
    return str(url).startswith(_SCHEMES)


def fault_in(url: str) -> str | None:
    """Say what is wrong with a PostgreSQL URL, without quoting it; None when it can be read."""
    try:
        parts = urlsplit(url)
        named = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        hosts = parts.netloc.rpartition("@")[2].split(",")
        readable = all((found := _HOST.fullmatch(host)) and int((found[2] or ":1")[1:]) < 65_536 for host in hosts)
    except ValueError:
        readable = False
    if not readable or parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment:
        return (
            'cannot be read; it must be like "postgresql://user:password@host:5432/farebox", signs in the password '
            "written as in a link: %40 for @, %3A for :, %2F for /, %3F for ?, %23 for #"
        )
    if not parts.path.strip("/") and not named.keys() & {"dbname", "database"}:
        return 'names no database; it must be like "postgresql://user@host:5432/farebox"'
    return None


def without_password(url: str) -> str:
    """Write a database's URL as people may see it."""
    scheme, separator, _ = url.partition("://")
    if not is_postgres(url):
        return url if "@" not in url or not separator or scheme == "sqlite" else f"{scheme}://…"
    if fault_in(url) is not None:
        return f"{scheme}://…"
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    return f"{scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"


def for_tools(url: str) -> str:
    """Write a PostgreSQL URL as its own tools (pg_dump, psql) take it: without the password, with what they know."""
    query = [
        ("dbname" if name == "database" else name, value)
        for name, value in parse_qsl(url.partition("?")[2])
        if name in _TOLD_TO_TOOLS or name == "database"
    ]
    return without_password(url) + (f"?{urlencode(query, quote_via=quote)}" if query else "")


def database_name(url: str) -> str:
    """Give the database's name as a file may be called; "farebox" where the URL leaves it to PostgreSQL."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", urlsplit(url).path.strip("/")) or "farebox"

"""The endpoints of files, as the reference and /openapi.json tell of them where the operator has switched them on."""

from typing import Final

from farebox import errors
from farebox.web.docs.endpoint import EVERYWHERE, WITH_A_BODY, Endpoint, Field, Schema
from farebox.web.offer import Offer

_ID: Final = "file_011CNha8iCJcU1wXNR6q4V8w"
_TEXT: Final[Schema] = {"type": "string"}
_ID_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_FILE: Final[Schema] = {
    "type": "object",
    "required": ["id", "type", "filename", "mime_type", "size_bytes", "created_at"],
    "properties": {
        "id": _TEXT,
        "type": {"const": "file"},
        "filename": _TEXT,
        "mime_type": _TEXT,
        "size_bytes": {"type": "integer", "minimum": 0},
        "created_at": {"type": "string", "format": "date-time"},
        "downloadable": {"type": ["boolean", "null"]},
        "expires_at": {"type": ["string", "null"], "format": "date-time"},
    },
}
_SHOWN: Final[Schema] = {
    "id": _ID,
    "type": "file",
    "filename": "notes.txt",
    "mime_type": "text/plain",
    "size_bytes": 13,
    "created_at": "2026-11-23T01:00:00.000000Z",
    "downloadable": False,
    "expires_at": None,
}
_PLACE: Final = Field("file_id", _TEXT, "The id of a file of yours.", required=True, place="path")
_FREE: Final = (*EVERYWHERE, errors.NotFound, errors.RateLimited)
_ASKED: Final = (*_FREE, errors.UpstreamFailed, errors.Overloaded)


def file_endpoints(offer: Offer) -> tuple[Endpoint, ...]:
    """Describe them; none where files are not offered."""
    return (_upload(), _list(), _get(), _content(), _delete()) if offer.features.get("files") else ()


def _upload() -> Endpoint:
    return Endpoint(
        slug="upload-file",
        method="POST",
        path="/v1/files",
        title="Upload a file",
        words="Send a file once and name it by its id in many messages. Free; it counts as input where it is named.",
        fields=(
            Field("file", {"type": "string", "contentEncoding": "binary"}, "The file, with its name.", required=True),
            Field(
                "expires_in_seconds",
                {"type": "integer", "minimum": 3600, "maximum": 7_776_000},
                "When it is deleted by itself. Left out, it stays until you delete it.",
            ),
        ),
        example={"file": "Hello!"},
        takes="multipart/form-data",
        answer=_FILE,
        answer_example=_SHOWN,
        refusals=(*WITH_A_BODY, errors.UpstreamFailed),
        passes_on=True,
    )


def _list() -> Endpoint:
    return Endpoint(
        slug="list-files",
        method="GET",
        path="/v1/files",
        title="List files",
        words="Your account's files, newest first, a page at a time.",
        fields=(
            Field(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
                "How many to give at most.",
                place="query",
            ),
            Field("page", _TEXT, "The `next_page` of the page before.", place="query"),
            Field("after_id", _TEXT, "Give those that come after this one.", place="query"),
            Field("before_id", _TEXT, "Give those that come before this one.", place="query"),
            Field("ids[]", _TEXT, "Give this one, if it is there; up to 100 of them.", place="query"),
        ),
        example=None,
        answer={
            "type": "object",
            "required": ["data", "has_more", "first_id", "last_id", "next_page"],
            "properties": {
                "data": {"type": "array", "items": _FILE},
                "has_more": {"type": "boolean"},
                "first_id": _ID_OR_NULL,
                "last_id": _ID_OR_NULL,
                "next_page": _ID_OR_NULL,
            },
        },
        answer_example={"data": [_SHOWN], "has_more": False, "first_id": _ID, "last_id": _ID, "next_page": None},
        refusals=_FREE,
    )


def _get() -> Endpoint:
    return Endpoint(
        slug="get-file",
        method="GET",
        path="/v1/files/{file_id}",
        title="Get a file's metadata",
        words="What is known of a file.",
        fields=(_PLACE,),
        example=None,
        answer=_FILE,
        answer_example=_SHOWN,
        refusals=_ASKED,
        passes_on=True,
    )


def _content() -> Endpoint:
    return Endpoint(
        slug="file-content",
        method="GET",
        path="/v1/files/{file_id}/content",
        title="Download a file",
        words="What is in a file. The provider refuses it for files that were uploaded.",
        fields=(_PLACE,),
        example=None,
        answer={},
        answer_example={},
        answers="application/octet-stream",
        refusals=_ASKED,
        passes_on=True,
    )


def _delete() -> Endpoint:
    deleted: Schema = {"id": _ID, "type": "file_deleted"}
    return Endpoint(
        slug="delete-file",
        method="DELETE",
        path="/v1/files/{file_id}",
        title="Delete a file",
        words="Delete a file, at the provider as well.",
        fields=(_PLACE,),
        example=None,
        answer={
            "type": "object",
            "required": ["id", "type"],
            "properties": {"id": _TEXT, "type": {"const": "file_deleted"}},
        },
        answer_example=deleted,
        refusals=_ASKED,
        passes_on=True,
    )

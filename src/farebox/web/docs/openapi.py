"""/openapi.json (OpenAPI 3.1), made of the same structures as the reference pages."""

from collections import defaultdict
from typing import Final

from farebox.web.docs.advice import Advice
from farebox.web.docs.endpoint import Endpoint, Field, Schema
from farebox.web.offer import Offer

_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": ["string", "null"]},
    },
}
_CHAT_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
    },
}
_EVENT: Final[Schema] = {
    "description": "One event; the answer is as many as it takes.",
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


def openapi(endpoints: tuple[Endpoint, ...], table: list[Advice], offer: Offer, title: str, version: str) -> Schema:
    """Describe the API for customers. `table` says when each error comes."""
    paths: Schema = defaultdict(dict)
    for endpoint in endpoints:
        paths[endpoint.path][endpoint.method.lower()] = _operation(endpoint, table)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": "The Anthropic Messages API, paid from a prepaid balance. "
            f"How it is used and billed: {offer.public_url}/docs",
        },
        "servers": [{"url": offer.base_url}],
        "security": [{"key": []}, {"bearer": []}],
        "paths": dict(paths),
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {"Error": _ERROR, "ChatError": _CHAT_ERROR},
            "headers": {
                "request-id": {"description": "The id of this call", "schema": {"type": "string"}},
            },
        },
    }


def _operation(endpoint: Endpoint, table: list[Advice]) -> Schema:
    operation: Schema = {
        "operationId": endpoint.slug.replace("-", "_"),
        "summary": endpoint.title,
        "description": endpoint.words,
        "responses": {"200": _answer(endpoint), **_refusals(endpoint, table)},
    }
    parameters = [_parameter(field) for field in endpoint.fields if field.place != "body"]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.example is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {endpoint.takes: {"schema": _body(endpoint), "example": endpoint.example}},
        }
    return operation


def _answer(endpoint: Endpoint) -> Schema:
    content: Schema = {"application/json": {"schema": endpoint.answer, "example": endpoint.answer_example}}
    if endpoint.only_streams:
        content = {"text/event-stream": {"schema": _EVENT}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    if endpoint.answers_lines:
        content = {"application/x-jsonl": {"schema": {"type": "string"}}}
    if endpoint.answers:
        content = {endpoint.answers: {"schema": endpoint.answer}}
    if endpoint.answers_text:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {
        "description": "The answer.",
        "headers": {"request-id": {"$ref": "#/components/headers/request-id"}},
        "content": content,
    }


def _refusals(endpoint: Endpoint, table: list[Advice]) -> Schema:
    statuses = {kind.status for kind in endpoint.refusals}
    rows = {row.status: row for row in table if row.status in statuses | {431} and row.type}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{endpoint.error}"}}}
    answers: Schema = {
        str(status): {
            "description": (f"`{row.type}`: {row.when}" if endpoint.error == "Error" else _begin(row.when))
            + f". {_sentence(row.what_to_do)}",
            "content": content,
        }
        for status, row in rows.items()
    }
    if endpoint.passes_on:
        answers["default"] = {
            "description": "What the provider refuses with, word for word.",
            "content": content,
        }
    return answers


def _sentence(words: str) -> str:
    return f"{_begin(words)}."


def _begin(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _parameter(field: Field) -> Schema:
    return {
        "name": field.name,
        "in": field.place,
        "required": field.required,
        "description": field.words,
        "schema": field.schema,
    }


def _body(endpoint: Endpoint) -> Schema:
    return {
        "type": "object",
        "required": [field.name for field in endpoint.body if field.required],
        "properties": {field.name: {**field.schema, "description": field.words} for field in endpoint.body},
        "additionalProperties": True,
    }

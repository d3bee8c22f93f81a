"""The API's reference as one HTML page, made of the OpenAPI document: no script, nothing to fetch from elsewhere."""

import re
from collections.abc import Sequence
from html import escape as _escape
from typing import Any


def escape(text: str) -> str:
    """The text for HTML, with `code` in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))


def reference_page(schema: dict[str, Any], style: str, icon: str) -> str:
    """The page. schema: an OpenAPI 3.1 document. style, icon: the addresses of its style sheet and icon."""
    info = schema["info"]
    about = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in info["description"].split("\n\n"))
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    models = "".join(_model(name, model) for name, model in schema["components"]["schemas"].items())
    return document_of(
        f"{info['title']} API", style, icon,
        f'{about}<p>For programs: <a href="openapi.json">openapi.json</a>. '
        'Over Kafka: <a href="docs/events">events and alerts</a></p>'
        f"<h2>Requests</h2>{operations}<h2>Answers</h2>{models}",
    )  # fmt: skip


def document_of(title: str, style: str, icon: str, content: str) -> str:
    """A page with a title and its content, HTML. style, icon: the addresses of its style sheet and icon."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="{escape(style)}">'
        f'<link rel="icon" href="{escape(icon)}" type="image/svg+xml"></head><body>'
        f'<header><a href="/">Overview</a></header><main><h1>{escape(title)}</h1>{content}</main></body></html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        (parameter["name"], _type(parameter["schema"]), parameter.get("description", ""))
        for parameter in operation.get("parameters", [])
    ]
    answers = [
        (status, ", ".join(_type(content["schema"]) for content in answer.get("content", {}).values()),
         answer["description"])
        for status, answer in operation["responses"].items()
    ]  # fmt: skip
    return (
        f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{escape(operation['description'])}</p>"
        + table(("parameter", "type", ""), parameters)
        + table(("status", "answer", ""), answers)
    )


def _model(name: str, model: dict[str, Any]) -> str:
    fields = [(field, _type(schema), schema.get("description", "")) for field, schema in model.get("properties", {}).items()]
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(model.get("description", ""))}</p>' + table(
        ("field", "type", ""), fields
    )


def _type(schema: dict[str, Any]) -> str:
    """What a JSON Schema allows, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format") or schema.get("type", "any"))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts; nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"

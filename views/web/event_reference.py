"""The contract on Kafka as one HTML page, made of the AsyncAPI document and the JSON Schemas, without a script."""

from typing import Any

import orjson

from views.web.reference import escape, table

# What each type's data holds besides its own fields; shown once.
_COMMON = "common"


def events_page(document: dict[str, Any], schemas: dict[str, dict[str, Any]], style: str) -> str:
    """The page.

    document: AsyncAPI 3.0. schemas: JSON Schemas by the names that its messages refer to. style: its style sheet's address.
    """
    info = document["info"]
    about = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in info["description"].split("\n\n"))
    files = ", ".join(f'<a href="/schemas/{name}">{name}</a>' for name in ("asyncapi.json", *schemas))
    channels = "".join(_channel(name, document, schemas) for name in document["channels"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} events and alerts</title>"
        f'<link rel="stylesheet" href="{escape(style)}"></head><body>'
        f"<h1>{escape(info['title'])} events and alerts</h1>{about}<p>For programs: {files}. "
        f'Over HTTP: <a href="/docs">the API</a></p>{channels}</body></html>'
    )


def _channel(name: str, document: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> str:
    channel = document["channels"][name]
    message = document["components"]["messages"][name]
    [operation] = [each for each in document["operations"].values() if each["channel"]["$ref"] == f"#/channels/{name}"]
    direction = "into Seatmark" if operation["action"] == "receive" else "out of Seatmark"
    settings = [(setting, _text(value)) for setting, value in channel["bindings"]["kafka"]["topicConfiguration"].items()]
    return (
        f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        f"<p>{escape(operation['summary'])} It goes {direction}. {escape(channel['description'])}</p>"
        + table(("setting of the topic", "value"), settings)
        + _contents(message, schemas)
    )


def _contents(message: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> str:
    if "headers" in message:
        return f"<h3>{escape(message['title'])}: headers</h3>" + _fields(message["headers"], {})
    schema = schemas[message["payload"]["schema"]["$ref"].removeprefix("./")]
    shapes = schema.get("$defs", {})
    examples = {example["name"]: example["payload"] for example in message["examples"]}
    parts = [f"<h3>{escape(schema['title'])}</h3><p>{escape(schema['description'])}</p>", _fields(schema, shapes)]
    # A type whose data has a shape of its own is a section; without, its examples follow.
    for name, example in examples.items():
        shape = shapes.get(name, {})
        parts.append(f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{escape(shape.get("description", ""))}</p>')
        parts.append(_fields(shape, shapes))
        parts.append(f"<pre>{escape(_json(example))}</pre>")
    others = [name for name in shapes if name not in examples]
    for name in others:
        title = "In the data of every type" if name == _COMMON else name
        parts.append(f'<h3 id="{escape(name)}">{escape(title)}</h3><p>{escape(shapes[name].get("description", ""))}</p>')
        parts.append(_fields(shapes[name], shapes))
    return "".join(parts)


def _fields(schema: dict[str, Any], shapes: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        whole = shapes.get(field.get("$ref", "").removeprefix("#/$defs/"), {}) | field
        rows.append((name, _type(whole, shapes), "yes" if name in required else "", whole.get("description", "")))
        nested = whole.get("properties", {})
        for inner, inner_field in nested.items() if "$ref" not in field else ():
            inner_whole = shapes.get(inner_field.get("$ref", "").removeprefix("#/$defs/"), {}) | inner_field
            needed = "yes" if inner in whole.get("required", ()) else ""
            rows.append((f"{name}.{inner}", _type(inner_whole, shapes), needed, inner_whole.get("description", "")))
    return table(("field", "type", "required", ""), rows)


def _type(schema: dict[str, Any], shapes: dict[str, Any]) -> str:
    """What a field's JSON Schema allows, in a few words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " | ".join(_text(value) for value in schema["enum"])
    kinds = schema.get("type", "any")
    words = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if "items" in schema:
        words = words.replace("array", f"list of {schema['items'].get('$ref', 'any').rsplit('/', 1)[-1]}")
    if schema.get("format") == "date-time":
        words = words.replace("string", "time") if "string" in words else "time"
    return words


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(document: Any) -> str:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()

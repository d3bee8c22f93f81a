"""The contract on Kafka as one HTML page, made of the AsyncAPI document and the JSON Schemas, without a script."""

from typing import Any

import orjson

from views.web.reference import document_of, escape, table

# What each type's data holds besides its own fields; shown once.
_COMMON = "common"


def events_page(document: dict[str, Any], schemas: dict[str, dict[str, Any]], style: str, icon: str) -> str:
    """The page.

    document: AsyncAPI 3.0. schemas: JSON Schemas by the names that its messages refer to. style, icon: the addresses of its
    style sheet and icon.
    """
    info = document["info"]
    about = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in info["description"].split("\n\n"))
    files = ", ".join(f'<a href="/schemas/{name}">{name}</a>' for name in ("asyncapi.json", *schemas))
    channels = "".join(_channel(name, document, schemas) for name in document["channels"])
    return document_of(
        f"{info['title']} events and alerts", style, icon,
        f'{about}<p>For programs: {files}. Over HTTP: <a href="/docs">the API</a></p>{channels}',
    )  # fmt: skip


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
        whole = _whole(field, shapes)
        rows.append((name, _type(whole), "yes" if name in required else "", whole.get("description", "")))
        # What has a shape with a name is a section of its own.
        for inner, inner_field in whole.get("properties", {}).items() if "$ref" not in field else ():
            part = _whole(inner_field, shapes)
            needed = "yes" if inner in whole.get("required", ()) else ""
            rows.append((f"{name}.{inner}", _type(part), needed, part.get("description", "")))
    return table(("field", "type", "required", ""), rows)


def _whole(field: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """A field with what the shapes say that it refers to; what it says itself goes before."""
    if "$ref" not in field:
        return field
    return _whole(shapes[field["$ref"].removeprefix("#/$defs/")], shapes) | field


def _type(field: dict[str, Any]) -> str:
    """What a field's JSON Schema allows, in a few words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " | ".join(_text(value) for value in field["enum"])
    kinds = field.get("type", "any")
    words = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if "items" in field:
        words = words.replace("array", f"list of {field['items'].get('$ref', 'any').rsplit('/', 1)[-1]}")
    return words.replace("string", "time") if field.get("format") == "date-time" else words


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(document: Any) -> str:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()

# SPDX-License-Identifier: MIT-0
"""Make a small value that fits a JSON schema.

>>> person = {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 18}}
>>> sample({"type": "object", "properties": person})
{'name': 'text', 'age': 18}
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any


def sample(schema: Any, root: Any = None) -> Any:
    """Return the value. Raises KeyError, TypeError or RecursionError if the schema is wrong.

    ``root`` is the schema that a ``$ref`` refers to, by default the schema itself.
    """
    root = root or schema
    for keyword, take in KEYWORDS.items():
        if keyword in schema:
            return take(schema[keyword], root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return TYPES[kind if isinstance(kind, str) else kind[0]](schema, root)


def _definition(reference: str, root: Any) -> Any:
    names = filter(None, reference.removeprefix("#").split("/"))
    return reduce(lambda schema, name: schema[name], names, root)


def _alternative(schemas: Any, root: Any) -> Any:
    """Prefer an alternative without a $ref, which may lead back to where we are."""
    return sample(min(schemas, key=lambda schema: "$ref" in schema), root)


def _list(schema: Any, root: Any) -> Any:
    length = schema.get("minItems", 0)
    return [sample(schema["items"], root) for _ in range(length)]


def _object(schema: Any, root: Any) -> Any:
    return {name: sample(each, root) for name, each in schema.get("properties", {}).items()}


def _text(schema: Any, root: Any) -> Any:
    text = FORMATS.get(schema.get("format"), "text")
    return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]


def _number(schema: Any, root: Any) -> Any:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return min(least, schema.get("maximum", least))


# The first of these that a schema has decides on the value.
KEYWORDS: dict[str, Callable[[Any, Any], Any]] = {
    "$ref": lambda reference, root: sample(_definition(reference, root), root),
    "const": lambda value, root: value,
    "default": lambda value, root: value,
    "enum": lambda values, root: values[0],
    "anyOf": _alternative,
    "oneOf": _alternative,
    "allOf": _alternative,
}
TYPES: dict[str, Callable[[Any, Any], Any]] = {
    "object": _object,
    "array": _list,
    "string": _text,
    "integer": _number,
    "number": _number,
    "boolean": lambda schema, root: True,
    "null": lambda schema, root: None,
}
FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "name@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}

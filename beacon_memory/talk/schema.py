"""A JSON schema as an answer can be held to it: narrower where a schema says less than the class it was made of.

An answer of a narrower schema is an answer of the schema. What it cannot be held to at all is left out, with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames")
_MADE_OF = ("allOf", "anyOf", "oneOf", "$ref", "not", "if", "then", "else", "dependentSchemas")
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples", "required", "example")  # no schemas, whatever they look like

_DAY = r"(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = rf"[12][0-9]{{3}}-({_DAY})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_N = "[0-9]{1,4}"
_CLOCK = f"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_HOST = r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?){0,4}\.[a-z]{2,12}"
# What a class of the format's name takes: no leap second, no 30th of February, no months in a duration, an address on
# the web.
FORMATS = {
    "date": rf"^{_DATE}$",
    "date-time": rf"^{_DATE}T{_TIME}{_ZONE}$",
    "time": rf"^{_TIME}{_ZONE}$",
    "duration": f"^P({_N}D({_CLOCK})?|{_CLOCK})$",
    "uri": rf"^https?://{_HOST}(:[1-9][0-9]{{1,3}})?(/[A-Za-z0-9._~/-]{{0,80}})?(\?[A-Za-z0-9._~=&-]{{1,80}})?$",
}
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?$"
_DECIMAL = r"^(?!^[-+.]*$)"  # how pydantic's patterns of a Decimal begin
_LARGEST = 1e15  # of a number that says no bound: none that is written becomes infinite


def held(schema: Any, holds: Callable[[str], bool]) -> Any:
    """The schema that an answer is held to. `holds` tells whether a pattern is one that an answer can be held to.

    - An object that names its keys has no others, unless it says so.
    - A number without bounds has at most 16 digits before its point, so that none is infinite.
    - A date, a time and a URI (on the web) are ones that the class of that name takes.
    - "A number or any text", as pydantic writes a Decimal, is a number, or a number as text.
    - Of a pattern that looks ahead, the rest is kept.

    >>> held({"type": "object", "properties": {"n": {"type": "number"}}}, lambda pattern: True)["additionalProperties"]
    False
    """
    return _schema(schema, holds)


def _schema(schema: Any, holds: Callable[[str], bool], *, whole: bool = True) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _VALUES:
            found[key] = value
        elif key in _BY_NAME and isinstance(value, Mapping):
            found[key] = {name: _schema(item, holds) for name, item in value.items()}
        elif isinstance(value, list | tuple):
            # A part of `allOf` is no whole object: what another part names is no stranger to it.
            found[key] = [_schema(item, holds, whole=key != "allOf") for item in value]
        else:
            found[key] = _schema(value, holds)
    if whole:
        _close(found)
    _bound(found)
    _text(found, holds)
    if _is_decimal(found.get("anyOf")):
        found["anyOf"] = [_numeric(one) if one == {"type": "string"} else one for one in found["anyOf"]]
    return found


def _close(found: dict[str, Any]) -> None:
    properties = found.get("properties")
    if isinstance(properties, Mapping) and not found.keys() & {*_OPEN, *_MADE_OF}:
        required = found.get("required", [])
        if isinstance(required, list) and all(name in properties for name in required):
            found["additionalProperties"] = False


def _bound(found: dict[str, Any]) -> None:
    if found.get("type") == "number" and not found.keys() & {"enum", "const", "multipleOf"}:
        for bound, largest in (("inimum", -_LARGEST), ("aximum", _LARGEST)):
            keys = [f"m{bound}", f"exclusiveM{bound}"]
            given = [found[key] for key in keys if isinstance(found.get(key), int | float)]
            if not given or abs(given[0]) > _LARGEST:
                found[keys[0]] = largest
                found.pop(keys[1], None)


def _text(found: dict[str, Any], holds: Callable[[str], bool]) -> None:
    pattern, form = found.get("pattern"), found.get("format")
    if isinstance(pattern, str):
        if pattern.startswith(_DECIMAL):
            found["pattern"] = _digits(pattern)
        elif not holds(pattern):
            rest = _without_looks(pattern)
            logger.warning("an answer cannot be held to the pattern %r: it is held to %r", pattern, rest)
            if rest and holds(rest):
                found["pattern"] = rest
            else:
                del found["pattern"]
    elif found.get("type", "string") == "string" and isinstance(form, str) and form in FORMATS:
        found["pattern"] = FORMATS[form]
        for key in ("format", "minLength", "maxLength"):
            found.pop(key, None)


def _is_decimal(choices: Any) -> bool:
    if not isinstance(choices, list):
        return False
    kinds = [one.get("type") for one in choices if isinstance(one, Mapping)]
    return len(kinds) == len(choices) and {"number", "string"} <= set(kinds) <= {"number", "string", "null"}


def _numeric(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, "pattern": _NUMBER}


def _digits(pattern: str) -> str:
    """What pydantic's pattern of a Decimal takes, in as many digits as it allows."""
    sizes = [int(size) for size in re.findall(r"\{[01],(\d+)\}", pattern)]
    if not sizes:
        return _NUMBER
    before = max(1, min(sizes[0], 15))
    behind = rf"(\.[0-9]{{1,{sizes[-1]}}})?" if len(sizes) > 1 and 0 < sizes[-1] < min(sizes[:-1]) else ""
    return rf"^-?(0|[1-9][0-9]{{0,{before - 1}}}){behind}$" if before > 1 else rf"^-?[0-9]{behind}$"


def _without_looks(pattern: str) -> str:
    """A pattern without its looks ahead and behind."""
    found, at = "", 0
    while at < len(pattern):
        if look := re.match(r"\(\?<?[=!]", pattern[at:]):
            depth, at = 1, at + look.end()
            while at < len(pattern) and depth:
                at += pattern[at] == "\\"
                depth += {"(": 1, ")": -1}.get(pattern[at : at + 1], 0)
                at += 1
        else:
            size = 2 if pattern[at] == "\\" else 1
            found, at = found + pattern[at : at + size], at + size
    return found

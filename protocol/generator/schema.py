"""JSON Schema and AsyncAPI, from the structs in `orbital_protocol.frames`."""

import base64
from typing import Any

import msgspec

from orbital_protocol import PROTOCOL_VERSION, SUBPROTOCOL
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame, Push, Request, type_of

Json = dict[str, Any]

ABOUT = (
    "Frames are MessagePack maps; SPEC.md is normative. This schema describes their form as JSON, in which the vectors "
    "have them: a MessagePack bin appears as a string of lower-case hex digits (contentEncoding base16), an absent "
    "optional field is left out. Unknown keys are ignored."
)
# msgspec speaks of the length in base64; these are the sizes in bytes that the protocol has.
_BYTES_BY_BASE64_LENGTH = {16: 12, 24: 16, 44: 32, 88: 64}


def every_frame() -> list[type[Frame]]:
    """Requests, their answers, pushes and `error`."""
    return [*REQUESTS, *dict.fromkeys(REQUESTS.values()), *PUSHES, Error]


def json_schema() -> Json:
    """Every frame and every map within frames."""
    found = every_frame()
    _, components = msgspec.json.schema_components(found)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:orbital:protocol:{PROTOCOL_VERSION}",
        "title": f"Orbital protocol, version {PROTOCOL_VERSION}",
        "description": ABOUT,
        "anyOf": [{"$ref": f"#/$defs/{frame.__name__}"} for frame in found],
        "$defs": {name: _hexed(components[name]) for name in sorted(components)},
    }


def _hexed(node: Any) -> Any:
    """The schema with hex where msgspec has base64."""
    match node:
        case {"contentEncoding": "base64"}:
            return _hex_string(node)
        case dict():
            return {key: _hexed(value) for key, value in node.items()}
        case list():
            return [_hexed(value) for value in node]
        case _:
            return node


def _hex_string(node: Json) -> Json:
    """The schema of a bin: `minLength` and `maxLength` are equal where its size is fixed."""
    if node.get("minLength") != node.get("maxLength"):
        raise ValueError(f"not foreseen: {node}")
    size = _BYTES_BY_BASE64_LENGTH[node["minLength"]] if "minLength" in node else None
    bounds = {} if size is None else {"minLength": 2 * size, "maxLength": 2 * size}
    kept = {key: value for key, value in node.items() if key in ("title", "description")}
    default = {"default": base64.b64decode(node["default"]).hex()} if "default" in node else {}
    return {**kept, "type": "string", "contentEncoding": "base16", "pattern": "^([0-9a-f]{2})*$", **bounds, **default}


def asyncapi(version: str) -> Json:
    """One channel; an operation for each request, with its answers, and one for each push."""
    messages = {frame.__name__: _message(frame) for frame in every_frame()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Orbital protocol",
            "version": version,
            "description": f"{ABOUT} A WebSocket message carries one or more frames back to back. The relay speaks "
            f"first (hello). Close codes: {_close_codes()}. Error codes: {', '.join(ErrorCode)}.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/msgpack",
        "servers": {
            "relay": {
                "host": "{host}",
                "protocol": "wss",
                "variables": {"host": {"default": "localhost:8765", "description": "host and port of the relay"}},
            }
        },
        "channels": {
            "relay": {
                "address": "/",
                "title": "A connection to a relay",
                "servers": [{"$ref": "#/servers/relay"}],
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": _websocket_binding()},
            }
        },
        "operations": {
            **{type_of(request): _request(request, answer.__name__) for request, answer in REQUESTS.items()},
            **{f"push.{type_of(push)}": _push(push) for push in PUSHES},
        },
        "components": {"messages": messages},
    }


def _close_codes() -> str:
    return ", ".join(f"{code.value} {code.name.lower()}" for code in CloseCode)


def _websocket_binding() -> Json:
    return {
        "method": "GET",
        "headers": {
            "type": "object",
            "properties": {"Sec-WebSocket-Protocol": {"type": "string", "const": SUBPROTOCOL}},
            "required": ["Sec-WebSocket-Protocol"],
        },
        "bindingVersion": "0.1.0",
    }


def _message(frame: type[Frame]) -> Json:
    described = {"summary": summary} if (summary := _summary(frame)) else {}
    return {
        "name": type_of(frame),
        "title": frame.__name__,
        **described,
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-07",
            "schema": {"$ref": f"./schema.json#/$defs/{frame.__name__}"},
        },
    }


def _summary(frame: type[Frame]) -> str:
    """The first sentence of the frame's own docstring, if it has one."""
    doc = frame.__dict__.get("__doc__") or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _reference(name: str) -> Json:
    return {"$ref": f"#/channels/relay/messages/{name}"}


def _request(request: type[Request], answer: str) -> Json:
    return {
        "action": "receive",
        "channel": {"$ref": "#/channels/relay"},
        "title": type_of(request),
        "messages": [_reference(request.__name__)],
        "reply": {"channel": {"$ref": "#/channels/relay"}, "messages": [_reference(answer), _reference("Error")]},
    }


def _push(push: type[Push]) -> Json:
    return {
        "action": "send",
        "channel": {"$ref": "#/channels/relay"},
        "title": type_of(push),
        "messages": [_reference(push.__name__)],
    }

"""The generated files: none has drifted, the schema is one and fits the vectors, AsyncAPI names every frame."""

import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from orbital_protocol import frames
from orbital_protocol.frames import PUSHES, REQUESTS, Error, Frame
from tests.protocol.vectors import PROTOCOL, load

SCHEMA: dict[str, Any] = json.loads((PROTOCOL / "schema.json").read_text(encoding="utf-8"))
ASYNCAPI: dict[str, Any] = yaml.safe_load((PROTOCOL / "asyncapi.yaml").read_text(encoding="utf-8"))
FRAMES = load("frames")
EVERY_FRAME: list[type[Frame]] = [*REQUESTS, *REQUESTS.values(), *PUSHES, Error]


def generate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROTOCOL / "generate.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


def test_no_generated_file_has_drifted() -> None:
    checked = generate("--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_drift_is_noticed_and_mended(tmp_path: Path) -> None:
    assert generate("--check", "--into", tmp_path).returncode == 1
    assert generate("--into", tmp_path).returncode == 0
    assert generate("--check", "--into", tmp_path).returncode == 0
    chain = tmp_path / "vectors" / "chain.json"
    chain.write_text(chain.read_text(encoding="utf-8").replace('"seq": 3', '"seq": 4'), encoding="utf-8")
    (tmp_path / "asyncapi.yaml").unlink()
    checked = generate("--check", "--into", tmp_path)
    assert checked.returncode == 1
    assert "vectors/chain.json" in checked.stderr
    assert "asyncapi.yaml" in checked.stderr
    assert "schema.json" not in checked.stderr


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


def instances() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every frame of the vectors, with the name of its schema."""
    requests = {frames.type_of(request): (request.__name__, answer.__name__) for request, answer in REQUESTS.items()}
    for exchange in FRAMES["exchanges"]:
        request, answer = requests[exchange["type"]]
        yield request, exchange["request"]["frame"]
        yield answer, exchange["answer"]["frame"]
    pushes = {frames.type_of(push): push.__name__ for push in PUSHES}
    for push in FRAMES["pushes"]:
        yield pushes[push["type"]], push["frame"]
    for error in FRAMES["errors"]:
        yield "Error", error["frame"]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_fits_every_vector() -> None:
    whole = Draft202012Validator(SCHEMA)
    for name, frame in instances():
        validator(name).validate(frame)
        whole.validate(frame)


def test_the_schema_has_every_frame() -> None:
    assert {reference["$ref"] for reference in SCHEMA["anyOf"]} == {f"#/$defs/{f.__name__}" for f in EVERY_FRAME}


def test_the_schema_refuses_what_lacks_a_field() -> None:
    for name, frame in instances():
        for required in SCHEMA["$defs"][name]["required"]:
            lacking = {key: value for key, value in frame.items() if key != required}
            assert not validator(name).is_valid(lacking), f"{name} without {required}"


@pytest.mark.parametrize("wrong", ["00" * 15, "00" * 17, "zz" * 16, "AA" * 16, 16, None, "00" * 16 + "\n"])
def test_the_schema_refuses_what_is_no_id(wrong: object) -> None:
    good = {"type": "group.get", "id": 1, "group_id": "00" * 16}
    assert validator("GroupGet").is_valid(good)
    assert not validator("GroupGet").is_valid({**good, "group_id": wrong})


def test_nothing_is_in_base64() -> None:
    def encodings(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "contentEncoding")
            yield from (found for value in node.values() for found in encodings(value))
        elif isinstance(node, list):
            yield from (found for value in node for found in encodings(value))

    assert set(encodings(SCHEMA)) == {"base16"}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        yield from (found for value in node.values() for found in references(value))
    elif isinstance(node, list):
        yield from (found for value in node for found in references(value))


def resolved(reference: str) -> Any:
    file, _, pointer = reference.partition("#/")
    node: Any = {"": ASYNCAPI, "./schema.json": SCHEMA}[file]
    for key in pointer.split("/"):
        node = node[key]
    return node


def test_asyncapi_refers_to_what_is_there() -> None:
    found = list(references(ASYNCAPI))
    assert len(found) > 2 * len(EVERY_FRAME)
    for reference in found:
        resolved(reference)


def test_asyncapi_names_every_frame() -> None:
    messages = ASYNCAPI["channels"]["relay"]["messages"]
    assert set(messages) == {frame.__name__ for frame in EVERY_FRAME}
    for frame in EVERY_FRAME:
        message = resolved(messages[frame.__name__]["$ref"])
        assert message["name"] == frames.type_of(frame)
        assert resolved(message["payload"]["schema"]["$ref"])["title"] == frame.__name__


def test_asyncapi_has_an_operation_for_every_request_and_push() -> None:
    operations = deepcopy(ASYNCAPI["operations"])
    for request, answer in REQUESTS.items():
        operation = operations.pop(frames.type_of(request))
        assert operation["action"] == "receive"
        assert operation["messages"] == [{"$ref": f"#/channels/relay/messages/{request.__name__}"}]
        answers = [{"$ref": f"#/channels/relay/messages/{name}"} for name in (answer.__name__, "Error")]
        assert operation["reply"]["messages"] == answers
    for push in PUSHES:
        assert operations.pop(f"push.{frames.type_of(push)}")["action"] == "send"
    assert not operations

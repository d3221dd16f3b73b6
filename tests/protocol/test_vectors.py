"""The vectors as a whole: they agree with one another, and their cases are told apart."""

import pytest

from tests.protocol.vectors import PROTOCOL, load

NAMES = ["frames", "codec", "limits", "chain", "statements", "media", "crypto"]

CONTENT = ["encrypted_title", "encrypted_body", "encrypted_metadata", "encryption_iv", "size_bytes", "root"]
CONTENT += ["statement", "signature"]


def test_these_are_all() -> None:
    assert sorted(path.stem for path in (PROTOCOL / "vectors").iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_file_says_what_it_is(name: str) -> None:
    assert load(name)["about"]


@pytest.mark.parametrize("name", ["codec", "limits"])
def test_cases_have_names_of_their_own(name: str) -> None:
    names = [case["name"] for case in load(name)["cases"]]
    assert len(set(names)) == len(names)


def test_cases_show_every_outcome() -> None:
    outcomes = [outcome for name in ("codec", "limits") for case in load(name)["cases"] for outcome in case["outcomes"]]
    assert {key for outcome in outcomes for key in outcome} == {"request", "id", "error", "field", "undecodable"}
    assert {outcome["error"] for outcome in outcomes if "error" in outcome} == {"bad_frame", "unknown_type"}


def test_events_are_pushed_as_the_chain_has_them() -> None:
    chain = {event["seq"]: event for event in load("chain")["events"]}
    pushed = [push["frame"] for push in load("frames")["pushes"] if push["type"] == "event"]
    assert {frame["seq"] for frame in pushed} == set(chain)
    for frame in pushed:
        event = chain[frame["seq"]]
        for name in ("hash", "kind", "object_id", "actor_id", "key_epoch", "created_at", "content_hash"):
            assert frame[name] == event[name]
        parent = frame.get("thread_id") or frame.get("target_id") or "00" * 16
        assert parent == event["parent_id"]
        content = [frame[name] if name != "size_bytes" else f"{frame[name]:016x}" for name in CONTENT if name in frame]
        assert content == ([] if "field_hashes" in frame else event["fields"])
        assert frame.get("field_hashes", event["field_hashes"]) == event["field_hashes"]


def test_files_are_those_of_media() -> None:
    roots = {(file["size_bytes"], file["root"]) for file in load("media")["files"]}
    pushed = [push["frame"] for push in load("frames")["pushes"] if push["type"] == "event"]
    posted = {(frame["size_bytes"], frame["root"]) for frame in pushed if "root" in frame}
    assert posted and posted <= roots


def test_statements_are_those_of_the_chain() -> None:
    fields = [event["fields"] for event in load("chain")["events"]]
    for vector in load("statements")["statements"]:
        assert [vector["statement"], vector["signature"]] in fields

"""Verifying: people by their fingerprints, and a group's whole log once more."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orbital_client import Client, Person
from orbital_client.cli.lookup import the_group
from orbital_client.cli.options import CommandError, Options, command, given, short
from orbital_client.cli.terminal import WRONG, printable
from orbital_client.deep import Verification, verify_deep


@command
async def verify(
    ctx: typer.Context,
    user: Annotated[
        str | None,
        typer.Argument(
            metavar="USER", help="A username, or the beginning of a user's id; otherwise everybody is listed."
        ),
    ] = None,
    *,
    yes_it_matches: Annotated[
        bool, typer.Option("--yes-it-matches", help="Both sides read the same: mark them as verified.")
    ] = False,
    deep: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Check this group's whole log again, from its creation on.")
    ] = None,
) -> None:
    """Show fingerprints, to be compared outside of this relay; or check a group's whole log again."""
    options = given(ctx)
    if yes_it_matches and user is None:
        raise typer.BadParameter("say who it is that matches", param_hint="USER")
    if deep is not None and user is not None:
        raise typer.BadParameter("verify a person, or a group, not both at once", param_hint="--deep")
    async with options.connected() as client:
        if deep is not None:
            found = await _verify_deep(options, client, deep)
        elif user is not None:
            found = await _verify_person(options, client, user, is_right=yes_it_matches)
        else:
            found = await _list_people(options, client)
    if not found:
        raise typer.Exit(1)


# ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _people(client: Client) -> dict[bytes, Person]:
    """Everybody in one's groups but oneself."""
    people: dict[bytes, Person] = {}
    for group in client.groups:
        await group.live()
        for member in await group.members():
            if member.user_id != client.user_id:
                people[member.user_id] = client.verify(member.user_id)
    return people


async def _list_people(options: Options, client: Client) -> bool:
    people = sorted((await _people(client)).values(), key=lambda person: person.name)
    options.terminal.document({"fingerprint": client.fingerprint, "people": [_facts(person) for person in people]})
    options.terminal.say(f"Your fingerprint:\n\n    {client.fingerprint}\n")
    for person in people:
        options.terminal.say(f"{printable(person.name)}  {short(person.user_id)}  {_state(person)}")
        options.terminal.say(f"    {person.fingerprint}", WRONG if person.is_changed else "")
    return True


async def _verify_person(options: Options, client: Client, user: str, *, is_right: bool) -> bool:
    person = await _the_person(client, user)
    if is_right:
        client.mark_verified(person.user_id)
        person = client.verify(person.user_id)
    options.terminal.document({"fingerprint": client.fingerprint, "person": _facts(person)})
    options.terminal.say(f"Your fingerprint:\n\n    {client.fingerprint}\n")
    options.terminal.say(f"That of {printable(person.name)}:\n\n    {person.fingerprint}\n")
    if person.is_changed:
        options.terminal.say("These are other keys than before, and the old ones have not signed for them.", WRONG)
    if person.is_verified:
        options.terminal.say(f"{printable(person.name)} is verified.", "green")
    else:
        options.terminal.say("Compare both with them, outside of this relay; if they read the same: --yes-it-matches")
    return True


async def _the_person(client: Client, user: str) -> Person:
    people = await _people(client)
    named = [person for person in people.values() if person.name == user]
    found = named or [person for person in people.values() if user and person.user_id.hex().startswith(user.lower())]
    if len(found) != 1:
        raise CommandError(f"{len(found) or 'no'} people in your groups are called {user!r}")
    return found[0]


def _state(person: Person) -> str:
    if person.is_changed:
        return "other keys than before"
    return "verified" if person.is_verified else "not verified"


def _facts(person: Person) -> dict[str, Any]:
    return {
        "user_id": person.user_id,
        "username": person.name,
        "fingerprint": person.fingerprint,
        "is_verified": person.is_verified,
        "is_changed": person.is_changed,
    }


# ── a group ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _verify_deep(options: Options, client: Client, text: str) -> bool:
    group = await the_group(client, text)
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=options.terminal.err, transient=True, disable=not options.terminal.shows_progress
    ) as progress:
        task = progress.add_task("", total=None)
        found = await verify_deep(client, group, lambda done, total: progress.update(task, completed=done, total=total))
    options.terminal.document(_deep_facts(found))
    for line in _deep_lines(found):
        options.terminal.say(line)
    for wrong in _wrongs(found):
        options.terminal.say(printable(wrong), WRONG)
    options.terminal.say(
        "Everything is as it should be. Members who see the same code see the same log:"
        if found.is_sound
        else "Not everything is as it should be. The code of this log:"
    )
    options.terminal.say(f"\n    {found.code}\n", "bold")
    return found.is_sound


def _deep_lines(found: Verification) -> list[str]:
    return [
        f"{found.events} events from the creation on: hashes, signatures, roles and keys checked again",
        f"{found.opened} posts opened, their authors' signatures checked; {found.erased} are deleted",
        *([f"{found.without_key} posts are of a time whose key you have not got"] if found.without_key else []),
        f"{found.keys} of {found.epochs} group keys are here, and are those that the group agreed on",
        f"{found.members} members: the log and what is stored here name the same"
        if not found.differences
        else f"{found.members} members, by the log",
    ]


def _wrongs(found: Verification) -> list[str]:
    return [
        *(finding.text for finding in found.findings),
        *(f"event {seq}: {problem}" for seq, problem in found.problems),
        *found.differences,
    ]


def _deep_facts(found: Verification) -> dict[str, Any]:
    return {
        "is_sound": found.is_sound,
        "seq": found.head.seq,
        "hash": found.head.hash,
        "code": found.code,
        "events": found.events,
        "opened": found.opened,
        "erased": found.erased,
        "without_key": found.without_key,
        "members": found.members,
        "keys": found.keys,
        "epochs": found.epochs,
        "problems": [{"seq": seq, "text": text} for seq, text in found.problems],
        "findings": [{"seq": one.seq, "flaw": one.flaw, "text": one.text} for one in found.findings],
        "differences": found.differences,
    }


COMMANDS: Final[dict[str, Callable[..., None]]] = {"verify": verify}

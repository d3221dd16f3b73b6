"""The command `orbital`: a person's groups on the command line. Exit codes: 0 done, 1 a problem, 2 wrong usage.

app         the commands, options of all, and what goes wrong as one line each
terminal    how it prints: for people, or JSON           showing     how messages and changes look
options     what all commands are given, and the client  lookup      groups, people and messages by what people type
passphrases asked for, read, or proposed
accounts, groups, members, talking, transfers, verifying, exporting, bots: the commands
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from orbital_client.cli.app import app  # noqa: PLC0415  what it needs may not be installed
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("orbital"):
            raise
        sys.exit(f"orbital: {error.name} is not installed: pip install 'orbital-client[cli]'")
    app()

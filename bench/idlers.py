"""Load generator: connections that come in, subscribe to a group each, and then do nothing.

Task: {port, tokens, groups}, a group for each token. Answers {"ready": true} once all are live, and waits for a line.
"""

from bench import wire


def main() -> None:
    """Carry out one task."""
    task = wire.next_task()
    by_group: dict[str, list[str]] = {}
    for token, group in zip(task["tokens"], task["groups"], strict=True):
        by_group.setdefault(group, []).append(token)
    arrived = [wire.come_in(task["port"], tokens, bytes.fromhex(group)) for group, tokens in by_group.items()]
    wire.answer(ready=True, count=sum(map(len, arrived)))
    wire.next_task()


if __name__ == "__main__":
    main()

#!/usr/bin/env -S python -S
"""Stands in for valkey-cli, which the wheel doesn't bring: sends its arguments as one command and prints the answer.

The password is taken from REDISCLI_AUTH, as the real one does.
"""

from __future__ import annotations

import os
import socket
import sys


def request(*words: str) -> bytes:
    """A command as the protocol has it."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def main() -> int:
    """Returns the exit code."""
    with socket.create_connection(("127.0.0.1", 6379), timeout=4) as connection:
        answers = connection.makefile("rb")
        password = os.environ.get("REDISCLI_AUTH")
        line = ""
        for command in ([("AUTH", password)] if password else []) + [tuple(sys.argv[1:])]:
            connection.sendall(request(*command))
            line = answers.readline().decode().strip()
            if line.startswith("$"):  # a text of that many bytes
                line = answers.read(int(line[1:])).decode().strip()
            if line.startswith("-"):
                print(line)
                return 1
    print(line.removeprefix("+"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

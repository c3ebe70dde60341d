"""What a check says: one line that is ok, a warning or a problem."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was seen, what was expected and, unless that is ok, what to do.

    A problem spoils the run or stops it; a warning is for a person to judge.
    """

    level: Literal["ok", "warning", "problem"]
    check: str  # the subject of the check, in a word or two
    text: str

    def __str__(self):
        return f"{self.level:<8} {self.check}: " + self.text.replace("\n", "\n" + " " * 9)


Findings = Iterator[Finding]


def ok(check: str, text: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding("ok", check, text)


def warning(check: str, text: str) -> Finding:
    """A finding that a person has to judge."""
    return Finding("warning", check, text)


def problem(check: str, text: str) -> Finding:
    """A finding that spoils or stops the run."""
    return Finding("problem", check, text)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""Lists of names in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Names told in one sentence.
TOLD = 3


def some_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def is_or_are(names: Sequence[str]) -> str:
    """Return the verb for so many names."""
    return "is" if len(names) == 1 else "are"


def some_are(names: Sequence[str]) -> str:
    """Return what :func:`some_of` does, and the verb: "a and b are"."""
    return f"{some_of(names)} {is_or_are(names)}"


def some_have(names: Sequence[str]) -> str:
    """Return what :func:`some_of` does, and the verb: "a and b have"."""
    return f"{some_of(names)} {'has' if len(names) == 1 else 'have'}"

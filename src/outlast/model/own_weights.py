"""Whether a model is being built whose own, trained weights come next: it then needs no published ones to begin with.

All weights of a trained model are its own, also those that were published and stayed frozen. So a finished run can be
used where there is no internet, and where the file that its training began with is not attached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COMING = ContextVar("own weights are coming", default=False)


def are_coming() -> bool:
    """Whether settings that name published weights (a file, the hub) are not to be followed."""
    return _COMING.get()


@contextmanager
def coming() -> Iterator[None]:
    """Models are built inside without published weights; the caller loads every tensor of theirs."""
    token = _COMING.set(True)
    try:
        yield
    finally:
        _COMING.reset(token)

"""Waiting for what another thread or process does: for as long as it takes."""

import time

#: Longest wait, s. What comes about ends it at once; so this costs only where something
#: never does, and no machine is too busy for it.
PATIENCE_S = 600.0


def wait_until(ready, what="it"):
    """Wait until something is so; fail if it never is."""
    give_up = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < give_up, f"{what} did not happen"
        time.sleep(0.002)

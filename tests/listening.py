"""Listening to long work."""


def events_of(work):
    """Run long work to its end; return its events, and its result."""
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return events, stop.value

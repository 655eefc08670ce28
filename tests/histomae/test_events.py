"""Events go to a line of JSON and back."""

import dataclasses

import pytest

from histomae import events
from histomae.errors import RunError
from histomae.events import (
    KINDS,
    Event,
    Failed,
    Finished,
    Heartbeat,
    HeldOut,
    Note,
    Preview,
    Progress,
    Saved,
    Started,
    Step,
    event_from_json,
    result_of,
)

EXAMPLES = [
    Heartbeat(),
    Progress("finding tissue", 3, 10),
    Progress("finding tissue", 3, 10, 1.5, 4.75),
    Note("Größe 0.5 µm,\n“two” lines"),
    Started("mae", 0, 100, 180, 20, 1_500_000, "cpu", "f32", 0.69),
    Step(7, 100, 0.7, 0.125, 1e-4, 2.5, 33.3, None),
    Step(7, 100, 0.7, 0.125, 1e-4, 2.5, 33.3, 9.5, {"teacher_entropy": 5.4}),
    HeldOut(7, 0.93),
    Preview(7, "previews/7.png"),
    Saved(7, "checkpoints/last.safetensors"),
    Finished(100, "done"),
    Failed("The disk is full. Make room, then resume."),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_round_trip(event):
    line = event.to_json()
    assert "\n" not in line
    again = event_from_json(line)
    assert again == event
    assert type(again) is type(event)


def test_numbers_that_make_curves_have_names():
    step = Step(7, 100, 0.7, 0.125, 1e-4, 2.5, 33.3, None, {"teacher_entropy": 5.4})
    assert step.figures == {
        "loss": 0.125,
        "lr": 1e-4,
        "grad_norm": 2.5,
        "images_per_s": 33.3,
        "teacher_entropy": 5.4,
    }
    assert HeldOut(7, 0.93).figures == {"held_out_loss": 0.93}


def test_every_event_can_be_read_back():
    defined = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    }
    assert set(KINDS.values()) == defined == {type(event) for event in EXAMPLES}


def test_numbers_that_are_none_survive():
    event = event_from_json(HeldOut(1, float("nan")).to_json())
    assert event.loss != event.loss


def test_events_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Note("a").text = "b"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        "[]",
        "3",
        '"Note"',
        "{}",
        '{"kind": "Unknown"}',
        '{"kind": ["Note"]}',
        '{"kind": "Note"}',
        '{"kind": "Note", "text": "a", "more": 1}',
        '{"kind": "Note", "text": ',
    ],
)
def test_what_is_no_event_is_refused(line):
    with pytest.raises(RunError, match=r"Not an event of this version.*Read the run"):
        event_from_json(line)


def test_result_of_runs_to_the_end():
    said = []

    def work():
        for number in range(3):
            said.append(number)
            yield Progress("counting", number, 3)
        return "done"

    assert result_of(work()) == "done"
    assert said == [0, 1, 2]

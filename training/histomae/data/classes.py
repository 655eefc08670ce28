"""Classes: their names, their colours, and the sets that papers use.

Colours are told apart by people who cannot tell red from green, and a class keeps its
colour everywhere. The seven of BRACS run from cool (benign) over amber (atypical) to
warm (malignant).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from histomae.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

Color = tuple[int, int, int]

#: For what is not certain; never the colour of a class.
UNSURE: Color = (128, 128, 128)

#: For a user's own classes: Okabe and Ito's, without black and without the grey.
OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class ClassSet:
    """Classes in order: the index of a name is its label.

    ``colors`` are red, green, blue from 0 to 255; ``full_names`` are for people, where
    ``names`` are abbreviations.

    Raises
    ------
    ConfigError
        If a name is empty or there twice, or the lengths differ.
    """

    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    full_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.full_names:
            object.__setattr__(self, "full_names", self.names)
        lengths = {len(self.names), len(self.colors), len(self.full_names)}
        if len(lengths) != 1:
            raise ConfigError(
                "classes",
                f"{len(self.names)} names, {len(self.colors)} colours and "
                f"{len(self.full_names)} full names. Give one colour for each name.",
            )
        for name in self.names:
            if not name.strip():
                raise ConfigError("classes", "a name is empty. Give it one.")
            if self.names.count(name) > 1:
                raise ConfigError(
                    "classes", f"{name!r:.80} is there twice. Choose another name."
                )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, names: Iterable[str]) -> ClassSet:
        """Return classes of these names, with colours from the palette."""
        classes = cls()
        for name in names:
            classes = classes.with_class(name)
        return classes

    def color_of(self, name: str) -> Color:
        """Return the colour of a class; grey for a name that is none."""
        return self.colors[self.names.index(name)] if name in self.names else UNSURE

    def full_name(self, name: str) -> str:
        """Return the full name of a class, such as that of DCIS."""
        return self.full_names[self.names.index(name)] if name in self.names else name

    def with_class(self, name: str, color: Color | None = None) -> ClassSet:
        """Return these classes and one more, last."""
        return ClassSet(
            (*self.names, name),
            (*self.colors, color or next_color(self.colors)),
            (*self.full_names, name),
        )

    def without(self, name: str) -> ClassSet:
        """Return these classes less one; the others keep their colours."""
        kept = [i for i, other in enumerate(self.names) if other != name]
        return ClassSet(
            tuple(self.names[i] for i in kept),
            tuple(self.colors[i] for i in kept),
            tuple(self.full_names[i] for i in kept),
        )


def next_color(used: Iterable[Color]) -> Color:
    """Return a colour for one more class: the palette's next, then the farthest."""
    taken = [tuple(color) for color in used]
    for color in OKABE_ITO:
        if color not in taken:
            return color
    avoid = [*taken, UNSURE, (0, 0, 0), (255, 255, 255)]
    steps = (0, 51, 102, 153, 204, 255)
    return max(
        product(steps, steps, steps),
        key=lambda color: min(_distance(color, other) for other in avoid),
    )


def _distance(one: Iterable[int], other: Iterable[int]) -> float:
    """Return how different two colours look: green weighs most, blue least."""
    weights = (2, 4, 1)
    return sum(w * (a - b) ** 2 for w, a, b in zip(weights, one, other, strict=True))


_BLUES: tuple[Color, ...] = ((43, 58, 140), (47, 127, 193), (134, 208, 220))
_AMBERS: tuple[Color, ...] = ((255, 230, 128), (245, 163, 0))
_REDS: tuple[Color, ...] = ((217, 56, 30), (122, 12, 46))

BRACS_7 = ClassSet(
    names=("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"),
    colors=(*_BLUES, *_AMBERS, *_REDS),
    full_names=(
        "Normal",
        "Pathological benign",
        "Usual ductal hyperplasia",
        "Flat epithelial atypia",
        "Atypical ductal hyperplasia",
        "Ductal carcinoma in situ",
        "Invasive carcinoma",
    ),
)
BRACS_3 = ClassSet(
    names=("Benign", "Atypical", "Malignant"),
    colors=(_BLUES[1], _AMBERS[1], (179, 18, 47)),
)
BACH_4 = ClassSet(
    names=("Normal", "Benign", "In situ", "Invasive"),
    colors=(_BLUES[0], (95, 176, 216), _AMBERS[1], (179, 18, 47)),
)

#: The class sets of Teach, by the name shown.
PRESETS = {"BRACS-7": BRACS_7, "BRACS-3": BRACS_3, "BACH-4": BACH_4}

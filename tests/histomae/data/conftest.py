"""A BreakHis tree as small as can be."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def breakhis(tmp_path):
    """Return a function that makes a tree in BreakHis's layout.

    ``breakhis(*sets) -> Path``; a set is (subtype, slide, number, magnifications). The
    pictures are 70 x 46 px and say what they are: red is the magnification over 2,
    green the number.
    """

    def make(*sets, root=tmp_path / "BreaKHis_v1"):
        for subtype, slide, number, magnifications in sets:
            kind = "B" if subtype in ("A", "F", "PT", "TA") else "M"
            folder = root / "histology_slides" / f"SOB_{kind}_{subtype}_14-{slide}"
            for magnification in magnifications:
                pixels = np.full((46, 70, 3), 128, np.uint8)
                pixels[..., 0], pixels[..., 1] = magnification / 2, number
                name = (
                    f"SOB_{kind}_{subtype}-14-{slide}-{magnification}-{number:03}.png"
                )
                path = folder / f"{magnification}X" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        return root

    return make

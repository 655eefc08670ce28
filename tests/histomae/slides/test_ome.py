"""The pixel size in OME-XML: read where it is, never at the price of safety."""

import tracemalloc

import numpy as np
import pytest
import tifffile

from histomae.slides.ome import pixel_size_um
from histomae.slides.slide import Slide

HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
OME = 'OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def ome(attributes, before="", head=HEAD):
    return (
        f'{head}<{OME}><Image ID="Image:0">{before}<Pixels {attributes}/></Image></OME>'
    )


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.26"', (0.25, 0.26)),
        ('PhysicalSizeX="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.3"', (0.25, 0.3)),
        ('PhysicalSizeX="5e-4" PhysicalSizeXUnit="mm"', (0.5, 5e-4)),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', None),
        ('PhysicalSizeX="half"', None),
        ('SizeX="100"', None),
    ],
)
def test_pixel_size(attributes, size):
    found = pixel_size_um(ome(attributes))
    assert found == (None if size is None else pytest.approx(size))


def test_the_first_picture_counts():
    text = ome('SizeX="3"', before='<Pixels PhysicalSizeX="0.5"/>')
    assert pixel_size_um(text) == (0.5, 0.5)


ENTITIES = "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol"}">' for n in range(12)
)
HOSTILE = {
    "a billion laughs": ome(
        'PhysicalSizeX="0.5"', "&e11;", f"{HEAD}<!DOCTYPE OME [{ENTITIES}]>"
    ),
    "an entity as the size": ome(
        'PhysicalSizeX="&half;"',
        head=f'{HEAD}<!DOCTYPE OME [<!ENTITY half "0.5">]>',
    ),
    "a file of this computer": ome(
        'PhysicalSizeX="0.5"',
        "&x;",
        f'{HEAD}<!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    ),
    "deep": f"<{OME}>" + "<a>" * 300_000,
    "long": f"<{OME}><!--" + "x" * 50_000_000,
    "many": f"<{OME}>" + "<Pixels/>" * 3_000_000,
    "cut": ome('PhysicalSizeX="0.5"')[:120],
    "no XML": "<OME this is & none",
    "nothing": "",
    "surrogates": f"<{OME}>\udcff\ud800<Pixels",
    "zeros": f"<{OME}>" + "\0" * 1000,
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_hostile_has_none_and_takes_no_memory(hostile):
    text = HOSTILE[hostile]
    tracemalloc.start()
    try:
        assert pixel_size_um(text) is None
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("size", "source"), [(0.325, "file"), (1e308, "missing"), (-0.5, "missing")]
)
def test_an_ome_tiff_says_its_pixel_size(tmp_path, size, source):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(
        path,
        np.full((300, 400, 3), 200, np.uint8),
        tile=(128, 128),
        photometric="rgb",
        compression="jpeg",
        ome=True,
        metadata=metadata,
    )
    with Slide.open(path) as slide:
        assert slide.mpp_source == source
        assert slide.is_direct(0)
        if source == "file":
            assert slide.mpp == (size, size)


def test_what_the_tiff_says_comes_first(make_slide):
    path = make_slide(mpp=0.5, description=ome('PhysicalSizeX="0.25"').encode())
    assert Slide.open(path).mpp == pytest.approx((0.5, 0.5))
    path = make_slide(mpp=500.0, description=ome('PhysicalSizeX="0.25"').encode())
    assert Slide.open(path).mpp == (0.25, 0.25)

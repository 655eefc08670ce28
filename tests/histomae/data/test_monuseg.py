"""MoNuSeg's layout, made in miniature; what is odd is named."""

import numpy as np
import pytest
from PIL import Image

from histomae.data.monuseg import patient_of, read_monuseg, read_outlines
from histomae.errors import DataSetError

NAMES = ("TCGA-18-5592-01Z-00-DX1", "TCGA-38-6178-01Z-00-DX1")
SQUARES = ([[2, 3], [8, 3], [8, 9], [2, 9]], [[10, 10], [14, 10], [14, 12], [10, 12]])


def outlines(rings):
    regions = "".join(
        f'<Region Id="{number}"><Vertices>'
        + "".join(f'<Vertex X="{x}.0" Y="{y}.0" Z="0"/>' for x, y in ring)
        + "</Vertices></Region>"
        for number, ring in enumerate(rings, start=1)
    )
    return (
        '<?xml version="1.0"?><Annotations MicronsPerPixel="0.252000">'
        f'<Annotation Id="1"><Regions>{regions}</Regions></Annotation></Annotations>'
    )


@pytest.fixture
def tree(tmp_path):
    """The official folders: training data apart, test data side by side."""
    train = tmp_path / "MoNuSeg 2018 Training Data"
    places = [
        (train / "Tissue Images", train / "Annotations"),
        (tmp_path / "MoNuSegTestData",) * 2,
    ]
    for name, (pictures, marks) in zip(NAMES, places, strict=True):
        pictures.mkdir(parents=True, exist_ok=True)
        marks.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 20, 3), 200, np.uint8)
        Image.fromarray(pixels).save(pictures / f"{name}.tif")
        (marks / f"{name}.xml").write_text(outlines([*SQUARES, [[0, 0], [1, 1]]]))
    return tmp_path


def test_pictures_meet_their_outlines(tree):
    data = read_monuseg(tree)
    assert [(p.path.stem, p.side) for p in data.pictures] == [
        (NAMES[0], "train"),
        (NAMES[1], "test"),
    ]
    assert [p.patient for p in data.pictures] == ["TCGA-18-5592", "TCGA-38-6178"]
    pixels, marks = data.read(data.pictures[0])
    assert pixels.shape == (16, 20, 3)
    expected = np.zeros((16, 20), int)
    expected[3:9, 2:8], expected[10:12, 10:14] = 1, 2
    assert np.array_equal(marks.objects, expected)
    assert marks.centres == pytest.approx(np.array([[5, 6], [12, 11]]))
    assert data.mpp is None and "40x" in data.notes[0]


def test_what_has_no_partner_is_named(tree):
    alone = tree / "Tissue Images" / "lonely.tif"
    alone.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(alone)
    data = read_monuseg(tree)
    assert len(data) == 2 and "lonely" in " ".join(data.notes)
    assert patient_of("lonely") == "lonely"


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataSetError, match="MoNuSeg"):
        read_monuseg(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Annotations>",
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><Annotations>&a;</Annotations>',
        "<A><Region><Vertex X='1'/></Region></A>",
        "<A><Region><Vertex X='nan' Y='1'/></Region></A>",
        "<A><Region><Vertex X='one' Y='1'/></Region></A>",
    ],
    ids=range(6),
)
def test_damaged_outlines_are_refused(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataSetError, match=r"a\.xml"):
        read_outlines(path)
    with pytest.raises(DataSetError, match=r"b\.xml"):
        read_outlines(tmp_path / "b.xml")

"""Tests of histomae.data.slide_labels."""

from types import SimpleNamespace

import numpy as np
import pytest

from histomae.data.slide_labels import read_slide_labels
from histomae.errors import LabelError, NotEnoughDataError


@pytest.fixture
def table(tmp_path):
    """Return a function that writes lines as a table, and returns its path."""

    def write(*lines, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    return write


PLAIN = ("slide,patient,label", "a,p,benign", "b,p,malignant", "c,q,benign")


def test_the_rows_come_back(table):
    labels = read_slide_labels(table(*PLAIN))
    assert labels.slides == ("a", "b", "c")
    assert labels.patients == ("p", "p", "q")
    assert labels.class_names == ("benign", "malignant")
    np.testing.assert_array_equal(labels.labels, [0, 1, 0])
    np.testing.assert_array_equal(labels.groups, [0, 0, 1])
    assert labels.is_test is None
    assert labels.notes == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_other_spellings_of_the_same(table, encoding):
    other = (
        "Label; slide ;PATIENT;comment",
        "benign;a;p;x",
        "malignant; b;p;",
        "benign;c;q;",
    )
    one = read_slide_labels(table(*other, encoding=encoding))
    assert (one.slides, one.patients) == (("a", "b", "c"), ("p", "p", "q"))
    np.testing.assert_array_equal(one.labels, [0, 1, 0])


def test_a_split_is_read(table):
    path = table(
        *("slide,patient,label,split", "a,p,x,train", "b,q,y,Test", "c,r,y,train")
    )
    np.testing.assert_array_equal(read_slide_labels(path).is_test, [False, True, False])


def test_what_is_missing_is_told(table):
    path = table(*PLAIN, "d,r,", "e,,malignant")
    labels = read_slide_labels(path)
    assert labels.slides == ("a", "b", "c", "e")
    assert labels.patients[-1] == "slide e"
    unlabelled, unknown = labels.notes
    assert unlabelled == "d has no label and is left out."
    assert "names no patient of e" in unknown


def test_a_column_of_patients_may_be_missing(table):
    labels = read_slide_labels(table("slide,label", "a,x", "b,y"))
    assert len(set(labels.patients)) == 2
    assert "names no patient of a, b" in labels.notes[0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("slide,patient", "a,p"), "no column 'label'"),
        (("name,label", "a,x"), "no column 'slide'"),
        ((*PLAIN, "a,q,benign"), "has a twice"),
        (("slide,patient,label,split", "a,p,x,left", "b,q,y,test"), "the side 'left'"),
        (
            ("slide,patient,label,split", "a,p,x,test", "b,q,y,test"),
            "every slide on the side test",
        ),
        (
            ("slide,patient,label,split", "a,p,x,test", "b,p,y,train"),
            "p is both trained on and tested on",
        ),
    ],
)
def test_a_wrong_table_is_refused(table, lines, words):
    with pytest.raises(LabelError, match=words):
        read_slide_labels(table(*lines))


def test_what_is_no_table_is_refused(tmp_path, table):
    with pytest.raises(LabelError, match="cannot be read"):
        read_slide_labels(tmp_path / "none.csv")
    with pytest.raises(LabelError, match="UTF-8"):
        read_slide_labels(table("slide,label", "ä,x", encoding="latin-1"))


@pytest.mark.parametrize(
    ("lines", "found"), [(PLAIN[:2], r"\(benign\)"), (PLAIN[:1], r"\(none\)")]
)
def test_one_class_is_too_few(table, lines, found):
    with pytest.raises(NotEnoughDataError, match=found):
        read_slide_labels(table(*lines))


def slides(*names):
    """Return whole slides, as they are looked for in a table."""
    return [SimpleNamespace(name=name, slide=name) for name in names]


class TestAmong:
    def test_slides_are_found_with_and_without_their_suffix(self, table):
        lines = ("slide,patient,label", "a.svs,p,x", "b,q,y", "c.svs,r,y", "d,s,x")
        found = read_slide_labels(table(*lines)).among(slides("b", "a", "c.svs"))
        assert found.slides == ("a", "b", "c.svs")
        assert found.patients == ("p", "q", "r")
        np.testing.assert_array_equal(found.labels, [0, 1, 1])
        assert found.notes == ("d has a label and no features, and is left out.",)

    def test_the_split_goes_along(self, table):
        lines = ("slide,patient,label,split", "a,p,x,train", "b,q,y,test", "c,r,y,test")
        found = read_slide_labels(table(*lines)).among(slides("a", "c"))
        np.testing.assert_array_equal(found.is_test, [False, True])

    def test_two_rows_of_one_slide_are_refused(self, table):
        labels = read_slide_labels(table(*PLAIN, "a.svs,r,malignant"))
        with pytest.raises(LabelError, match="2 rows of the labels name the slide a"):
            labels.among(slides("a", "b", "c"))

    def test_too_few_left(self, table):
        with pytest.raises(NotEnoughDataError, match="benign"):
            read_slide_labels(table(*PLAIN)).among(slides("a", "c"))

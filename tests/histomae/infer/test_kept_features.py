"""Features are made once for a slide, and again only where something changed."""

import numpy as np
import pytest

from histomae.exchange.features import read_features
from histomae.infer.embed import SlideEmbedding
from histomae.infer.kept_features import kept_features
from histomae.slides.tissue import TissueParams, remember_params


@pytest.fixture
def keep(slide, tmp_path, run):
    def make(embedding):
        return run(kept_features(slide, embedding, folder=tmp_path / "kept"))

    return make


def test_once_and_not_again(keep, encoder, slide, run):
    embedding = SlideEmbedding(encoder)
    said, file = keep(embedding)
    assert len(said) > 1
    _, features = run(embedding.features_of(slide))
    np.testing.assert_array_equal(read_features(file).cells, features.cells)
    np.testing.assert_allclose(read_features(file).values, features.values, atol=1e-5)
    assert keep(embedding) == ([], file)


def test_another_encoder_has_a_file_of_its_own(keep, encoder, other_encoder):
    _, file = keep(SlideEmbedding(encoder))
    _, other = keep(SlideEmbedding(other_encoder))
    assert file != other
    assert len(list(file.parent.iterdir())) == 2


def test_anew_with_other_tissue_or_a_damaged_file(keep, encoder, slide):
    embedding = SlideEmbedding(encoder)
    _, file = keep(embedding)
    file.write_bytes(file.read_bytes()[:-40])
    said, again = keep(embedding)
    assert said
    assert again == file
    assert keep(embedding)[0] == []
    remember_params(slide, TissueParams(closing_um=0))
    assert keep(embedding)[0]
    assert read_features(file).header.tissue["closing_um"] == 0

"""The slides under File > Open Sample."""

from __future__ import annotations

from typing import Any

LayerData = tuple[Any, ...]


def sample_slide() -> list[LayerData]:
    """Return the synthetic sample slide; it is made on first use."""
    from histomae.slides.sample import sample_slide as make
    from histomae.slides.slide import Slide
    from napari_histomae._layers import slide_layer_data

    slide = Slide.open(make().slide_path)
    data, attributes, kind = slide_layer_data(slide)
    return [(data, attributes | {"name": f"{slide.name} (synthetic)"}, kind)]


def cmu_small_region() -> list[LayerData]:
    """Return a small real slide from OpenSlide's test data; it is fetched once.

    Raises
    ------
    DownloadError
        If it cannot be fetched, or is not the file that is expected.
    """
    from histomae.events import result_of
    from histomae.slides.download import CMU_SMALL_REGION, fetch
    from histomae.slides.slide import Slide
    from napari_histomae._layers import slide_layer_data

    return [slide_layer_data(Slide.open(result_of(fetch(CMU_SMALL_REGION))))]

"""The archive: slides, grids, tissue, crops and annotations. No torch."""

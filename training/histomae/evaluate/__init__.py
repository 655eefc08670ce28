"""The examination: how good a trained encoder is, and against what."""

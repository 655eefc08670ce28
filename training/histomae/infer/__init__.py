"""The reading room: a trained encoder looks at a slide."""

"""The card index: classes, splits and metrics. Tables, no torch."""

"""The school: the only place with an optimizer."""

"""The workshop: encoders, objectives, probes and checkpoints. Tensors only."""

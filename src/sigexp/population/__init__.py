"""Many members as one. Read population.py, then together.py: the training step, and how all members take it at once."""

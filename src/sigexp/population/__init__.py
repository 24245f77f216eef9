"""Many members as one. Read population.py, then together.py and rules.py: the training step, how all members take it
at once, and how a layer is fused."""

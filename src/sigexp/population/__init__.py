"""Many members as one: parameters stacked over members, per-member optimizers, the training step."""

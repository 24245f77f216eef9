"""Many members as one. How a layer is fused: together.py, then rules.py; how to add one: CONTRIBUTING.md, "Fuse another
layer". The training step: population.py. (fused.py is about runs of a sweep as one population, not about layers.)"""

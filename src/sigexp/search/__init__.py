"""Which members live, and which hyperparameters they get."""

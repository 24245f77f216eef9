"""Recursive filters of sequences.

Axes: B sequences, T samples.
"""

import numpy as np
import scipy.signal


def first_order(x: np.ndarray, *, pole: float, gain: float) -> np.ndarray:
    """y[0] = x[0] and y[t] = pole y[t-1] + gain x[t-1] along the last axis of [..., T]: float64.

    In the transposed direct form the state before the first sample is what y[0] is to be.
    """
    y, _ = scipy.signal.lfilter([0.0, gain], [1.0, -pole], x, zi=np.asarray(x[..., :1], dtype=np.float64))
    return y

"""The lecture's demonstrations that need no training: a page each, computed when asked for. Imports nothing heavy.

`sigexp demonstrate NAME` calls `page()` of the module of that name, which gives a `page.Page`.
"""

DEMONSTRATIONS = {
    "aliasing": "Every fourth sample of a sine, a chirp and a photograph: what lies above Nyquist folds down",
    "cie_rgb": "The CIE RGB matrix that the lecture compared with, and the error that it makes on sRGB photographs",
    "fc_matrix": "A full layer's matrix as a picture: bands, tied weights, and how many examples it takes to see them",
    "gabor": "Gabor functions of one variable: what their parameters do to the frequency response; banks of them",
    "gabor_2d": "Gabor functions of two variables, a factor of one half, and a bank that tells orientations apart",
    "nonlinearities": "Identity, sigmoid, ReLU, softplus: which of them approximates which, where, and how well",
    "separable_svd": "A learned kernel read as separable filters by its SVD, and kernels that take more than one",
}

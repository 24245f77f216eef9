"""Losses and gradients of linear models under mean squared error from second-order statistics of the examples.

Such a model gives y^ = W phi: phi are the inputs of its layer at one output position (the window under the kernel,
and a 1 for the bias). With the residuals e = y - C phi of any fixed weights C, and V = W - C, the loss of an example
with n target values and its gradient are exactly

    loss = (tr(V R V') - 2 tr(V q') + s) / n,   gradient = 2 (V R - q) / n,
    R = sum phi phi',  q = sum e phi',  s = sum |e|^2,   summed over the positions.

The statistics of a minibatch are the sums of its examples', so those of a training set are computed once and every
step of SGD or Adam follows without touching a pixel. C is close to the least-squares solution: with C = 0 the loss
would be a small difference of large numbers, of which float32 leaves nothing where a model fits well.

Axes: P members, B examples, K features, D outputs, S positions.
"""

import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sigexp.layers.activations import ACTIVATIONS
from sigexp.layers.chain import chain
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.layers.padding import SymmetricPad
from sigexp.population import compiling, native
from sigexp.population.convolution import _patches
from sigexp.population.geometry import Geometry
from sigexp.problem import Batch, PerExample
from sigexp.signal.quality import mse

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, FFTConv2d)
RESHAPING = (nn.Identity, nn.Flatten, nn.Unflatten)
# Fixed functions of every example by itself. Of other modules without parameters that cannot be known: they may draw
# random numbers or mix examples, as dropout and BatchNorm do.
FIXED = (*RESHAPING, *ACTIVATIONS.values(), LinearizeSRGB, SymmetricPad)

CHUNK = 2**21  # numbers worked on at once, 8 MB of float32
MOST_BYTES = 500_000_000  # of sums that are kept beside the training set's rows
RANK_TOLERANCE = 1e-6  # of R's largest eigenvalue; what is smaller is rounding in float32
ROUNDING = 1e-10  # the same for the sum of many rows
SUMMED = 100  # rows in float32; their sums are summed in float64


class Moments:
    """Statistics of single examples under one linear model, and what follows from them for P members.

    values: numbers per example, which depends on the model only. Where an example has few positions (an `nn.Linear` has
        one) they are more than the example itself, and nothing is gained.
    """

    centre: Tensor  # [D, K], the C of the statistics; set by `compute`
    _again: dict[tuple[int, ...], tuple[list[StorageWeakRef], Tensor]]  # of examples' memory, and about that centre

    def __init__(self, front: nn.Module, layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        """front: what comes before the layer, without parameters. Use `of`, which finds both in a model."""
        self.front, self.layer = front, layer
        self._solved: tuple[weakref.ref[Tensor], tuple[Tensor, Tensor]] | None = None
        D, K = len(layer.weight), layer.weight[0].numel() + (layer.bias is not None)
        self.outputs, self.features, self.values = D, K, K * (K + 1) // 2 + D * K + 1
        kernel, dilation = ((1,), (1,)) if isinstance(layer, nn.Linear) else (layer.kernel_size, layer.dilation)
        self.kernel, self.dilation = (1, *kernel)[-2:], (1, *dilation)[-2:]  # a sequence is an image one pixel high

    @classmethod
    def of(cls, template: nn.Module, loss: PerExample) -> "Moments | None":
        """None where the model is not seen to be linear in its parameters, or the loss is not `mse`."""
        found = front_and_layer(template, loss)
        return cls(*found) if found else None

    def compute(self, batch: Batch) -> Tensor:
        """A row of statistics for every example: [N, values], in the inputs' dtype.

        A row has R's upper triangle, q [D, K] and s, divided by n. C is fitted to some of the examples at every call,
        so `losses_and_gradients` takes the rows of the last one only.
        """
        inputs, targets = batch
        self.use(inputs.new_zeros(self.outputs, self.features))
        enough = 64 + 2 * self.features * self.outputs // targets[0].numel()
        few = max(1, len(inputs) // enough)
        R, q, _ = self._unpack(self.rows(inputs[::few], targets[::few]).sum(0))
        # Float64 for the small eigenvalues; on the CPU because not every device has it.
        inverse = torch.linalg.pinv(R.cpu().double(), rtol=RANK_TOLERANCE, hermitian=True)
        self.use((q.cpu().double() @ inverse).to(inputs))
        return self.rows(inputs, targets)

    def least_squares(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's weight and bias [D] (empty where it has none) of least squared error over all rows: float64."""
        if self._solved is None or self._solved[0]() is not table:
            self._solved = weakref.ref(table), self._solve(table)  # weak: the table is large
        return self._solved[1]

    def _solve(self, table: Tensor) -> tuple[Tensor, Tensor]:
        R, q, _ = self._unpack(summed(table.split(SUMMED)))
        weights = self.centre.cpu().double() + q @ torch.linalg.pinv(R, rtol=ROUNDING, hermitian=True)
        taps = self.layer.weight[0].numel()
        return weights[:, :taps].reshape(self.layer.weight.shape), weights[:, taps:].flatten()

    def use(self, centre: Tensor) -> None:
        """Go on with the rows that others of this model have computed, about the weights `centre` [D, K]."""
        self._index(centre.device)
        self.centre, self._again = centre, {}

    def again(self, batch: Batch) -> Tensor | None:
        """The sum [values], float64, of the rows of examples that will come again in the same memory, as validation
        data do: it is computed once, and forgotten with them. None where the sums would take more than `MOST_BYTES`."""
        key = tuple(n for part in batch for n in (part.data_ptr(), part._version, *part.shape))
        if key not in self._again or _gone(self._again[key][0]):
            self._again = {key: known for key, known in self._again.items() if not _gone(known[0])}
            if (len(self._again) + 1) * self.values * torch.float64.itemsize > MOST_BYTES:
                return None
            pairs = zip(*(part.split(SUMMED) for part in batch), strict=True)
            memory = [StorageWeakRef(part.untyped_storage()) for part in batch]
            self._again[key] = memory, summed(self.rows(*pair) for pair in pairs)
        return self._again[key][1]

    def losses_and_gradients(
        self, params: Mapping[str, Tensor], table: Tensor, index: Tensor, weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses [P] summed over a minibatch, and the gradients [P, ...] of those sums times `weights` [P].

        params: name -> [P, ...], in the order of `named_parameters`. index: [B] int64, the minibatch as rows of
        `table`, which is what `compute` returned.
        """
        # Without the 10 microseconds of checks of F.embedding_bag. Selecting and summing takes up to twice as long.
        sums = torch.embedding_bag(table, index, index.new_zeros(1), False, 0)[0][0]
        R, q, s = self._unpack(sums)
        weight, *bias = params.values()
        V = self._from_centre(params)
        G = torch.matmul(V, R).sub_(q)
        losses = (V * (G - q)).sum((1, 2)).add_(s)
        G *= weights.view(-1, 1, 1) * 2
        taps = self.features - len(bias)
        return losses, [G[..., :taps].reshape(weight.shape), *(G[..., taps] for _ in bias)]

    def total_losses(self, params: Mapping[str, Tensor], row: Tensor) -> Tensor:
        """The loss of every member, summed over examples: [P] float64. row: the sum of their rows, float64."""
        V, (R, q, s) = self._from_centre(params).cpu().double(), self._unpack(row)
        losses = (V * (torch.matmul(V, R) - 2 * q)).sum((1, 2)) + s
        return losses.masked_fill(losses > torch.finfo(torch.float32).max, torch.inf)  # as members have them

    def _from_centre(self, params: Mapping[str, Tensor]) -> Tensor:
        """V [P, D, K]."""
        weight, *bias = params.values()
        return torch.cat([weight.flatten(2), *(b.unsqueeze(2) for b in bias)], 2).sub_(self.centre)

    def _index(self, device: torch.device) -> None:
        """Where among the numbers of `_products` a row's values are, and where in a row the elements of R are.

        A feature's `place` is its number if the features lie by kernel row first, (h, C, w), as the products have them.
        """
        D, K, (h, w) = self.outputs, self.features, self.kernel
        taps = self.layer.weight[0].numel()
        place = torch.arange(taps).view(h, -1, w).transpose(0, 1).flatten()
        pairs = torch.minimum(place, place[:, None]) * taps + torch.maximum(place, place[:, None])
        outputs = taps**2 + torch.arange(D + 1)[:, None] * (taps + 1)  # the last one stands for the ones
        across = torch.cat([outputs + place, outputs + taps], 1)
        square = torch.cat([torch.cat([pairs, across[D:, :taps].T], 1), across[D:]])
        rows, columns = torch.triu_indices(K, K)
        squares = outputs[D] + taps + 1
        self._kept = torch.cat([square[rows, columns], across[:D, :K].flatten(), squares]).to(device)
        self._order = place.argsort().to(device)
        # The triangle of the symmetric R: half the memory, and nearly half the time of a call, which reading it takes.
        mirror = torch.empty(K, K, dtype=torch.int64)
        mirror[rows, columns] = mirror[columns, rows] = torch.arange(len(rows))
        self._mirror = mirror.flatten().to(device)

    def _unpack(self, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R [K, K], q [D, K], s [] of a row of statistics, or of a sum of rows."""
        D, K = self.outputs, self.features
        return row.index_select(0, self._mirror.to(row.device)).view(K, K), row[-1 - D * K : -1].view(D, K), row[-1]

    def rows(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of these examples, as `compute` gives them, for the centre as it is: [N, values]."""
        n = targets[0].numel()
        table = inputs.new_empty(len(inputs), self.values)
        compiled = not isinstance(self.layer, nn.Linear) and compiling.takes(inputs, targets, self.centre)
        # A thread for each chunk, because single operations on a few examples divide badly among threads.
        threads = torch.get_num_threads() if inputs.device.type == "cpu" else 1
        most = CHUNK // (self.values + n + (0 if compiled else self.features * (n // self.outputs)))
        size = max(1, min(most, -(-len(inputs) // threads)))

        def fill(rows: Tensor, inputs: Tensor, targets: Tensor) -> None:
            x, y = self._padded(inputs, targets)
            if compiled:
                self._fill(x, y, rows)
            else:
                torch.index_select(self._products(self._lines(x), y), 1, self._kept, out=rows).div_(n)

        chunks = table.split(size), inputs.split(size), targets.split(size)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(fill, *chunks) if threads > 1 else map(fill, *chunks))
        finally:
            torch.set_num_threads(threads)
        return table

    def _fill(self, x: Tensor, y: Tensor, rows: Tensor) -> None:
        """Rows by moments.c, from padded x [N, C, H + d (h - 1), W + e (w - 1)] and y [N, D, S]; on one thread."""
        library = compiling.kernel()
        assert library is not None
        bias = self.layer.bias is not None
        shape = compiling.Windows(*x.shape[1:], *self.kernel, *self.dilation, self.outputs, bias)
        tensors = [x.contiguous(), y.contiguous(), self.centre.contiguous(), rows]
        native.call(partial(library.moments_rows, shape, len(x), *(tensor.data_ptr() for tensor in tensors)))

    def _padded(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's inputs as images with their borders, [B, C, H + d (h - 1), W + e (w - 1)]; y [B, D, S]."""
        layer, x = self.layer, self.front(inputs.clone())  # a copy, because modules may work in place
        if isinstance(layer, nn.Linear):
            x, y = x.reshape(len(x), -1, layer.in_features).mT, targets.reshape(len(x), -1, self.outputs).mT
        else:
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, y = F.pad(x, layer._reversed_padding_repeated_twice, mode), targets.reshape(len(x), self.outputs, -1)
        return (x[:, :, None] if x.ndim == 3 else x), y

    def _lines(self, x: Tensor) -> Tensor:
        """The windows of one kernel row on every row of padded images, [B, C w, H + d (h - 1), W]."""
        row = Geometry((1, self.kernel[1]), (1, 1), (0, 0), (1, self.dilation[1]), groups=1)
        return _patches(x[:, :, None], row).unflatten(2, row.extent((x.shape[2], x.shape[3])))

    def _products(self, lines: Tensor, y: Tensor) -> Tensor:
        """R [h, C w, h, C w], in blocks above the diagonal only, e phi' [D + 1, h C w + 1] and s: flat, [B, ...].

        R[i, j], of the windows' rows i and j, sums over the rows of the image, and R[i + 1, j + 1] sums the same
        products but for those at the two ends. So only R[0, j] are long products: h times less work than phi phi'.
        """
        (h, _), (d, _), (B, L, height, _), D = self.kernel, self.dilation, lines.shape, self.outputs
        ends, taps = d * (h - 1), h * L
        shifted = [lines[:, :, d * i : d * i + height - ends].flatten(2) for i in range(h)]
        phi = torch.cat(shifted, 1)
        centre = self.centre[:, self._order].expand(B, -1, -1)
        e = torch.baddbmm(y - self.centre[:, taps:].sum(1, keepdim=True), centre, phi, alpha=-1)
        left = torch.cat([shifted[0], e, e.new_ones(B, 1, e.shape[2])], 1)
        long = torch.bmm(left, phi.mT)  # [B, C w + D + 1, h C w]
        products = lines.new_empty(B, taps**2 + (D + 1) * (taps + 1) + 1)
        R, across = products[:, : taps**2].view(B, h, L, h, L), products[:, taps**2 : -1].view(B, D + 1, taps + 1)
        R[:, 0], across[:, :, :-1] = long[:, :L].unflatten(2, (h, L)), long[:, L:]
        across[:, :, -1], products[:, -1] = left[:, L:].sum(2), e.square().sum((1, 2))
        if h > 1:
            top, bottom = (
                part.unflatten(2, (h - 1, d)).transpose(1, 2).flatten(3).flatten(1, 2)
                for part in (lines[:, :, :ends], lines[:, :, -ends:])
            )
            change = torch.bmm(bottom, bottom.mT).baddbmm_(top, top.mT, alpha=-1).view(B, h - 1, L, h - 1, L)
            for i in range(h - 1):
                torch.add(R[:, i, :, i:-1], change[:, i, :, i:], out=R[:, i + 1, :, i + 1 :])
        return products


def summed(tables: Iterable[Tensor]) -> Tensor:
    """The sum of all rows of tables, each of a few in their own precision, [values]: float64 on the CPU."""
    return torch.stack([rows.sum(0).cpu().double() for rows in tables]).sum(0)


def _gone(memory: list[StorageWeakRef]) -> bool:
    """Whether other examples may be there by now."""
    return any(one.expired() for one in memory)


def front_and_layer(
    template: nn.Module, loss: PerExample
) -> tuple[nn.Sequential, nn.Linear | nn.Conv1d | nn.Conv2d] | None:
    """What comes before the only layer of a model that is linear in its parameters, and that layer.

    Linear are a linear layer or a convolution with stride 1 and one group, alone or in (nested) `nn.Sequential`s after
    functions in `FIXED` and before reshaping. None for any other model, and where the loss is not `mse`.
    """
    if loss is not mse or any(m._forward_hooks or m._forward_pre_hooks for m in template.modules()):
        return None
    modules = chain(template)
    layers = [module for module in modules if isinstance(module, LAYERS)]
    if len(layers) != 1 or type(layers[0]) not in LAYERS:
        return None
    layer, at = layers[0], modules.index(layers[0])
    before, after = modules[:at], modules[at + 1 :]
    plain = {1, getattr(layer, "groups", 1), *getattr(layer, "stride", ())} == {1}
    fixed = all(type(m) in FIXED for m in before) and all(type(m) in RESHAPING for m in after)
    learned = all(parameter.requires_grad for parameter in layer.parameters())
    if plain and fixed and learned and all(map(_keeps_examples, modules)):
        return nn.Sequential(*before), layer
    return None


def _keeps_examples(module: nn.Module) -> bool:
    """Whether a reshaping leaves the first axis alone."""
    axis = {nn.Flatten: "start_dim", nn.Unflatten: "dim"}.get(type(module))
    return axis is None or getattr(module, axis) in range(1, 9)

"""Folds an adapter into one tensor: ``W + s * B @ A``, in float32, in blocks of rows.

Order of operations for every block of rows: product of the two factors, times the scale, plus the weight; for DoRA the
rows of the sum are then set to the learned length. All values are float32; the caller rounds once, to the output's
dtype. The product is always computed on the same grid of rows, whatever rows are requested, because the last bits of a
matrix product depend on the shape of its blocks: so any split of a tensor into pieces gives the same bytes.

Paper: LoRA, arXiv:2106.09685, section 4.1; rsLoRA, arXiv:2312.03732 (scale); DoRA, arXiv:2402.09353, equation 5.
Difference: PEFT rounds the product to the adapter's dtype before it is added; here nothing is rounded in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcompose.checkpoint.codec import read_float32
from mcompose.checkpoint.tensor import TensorEntry
from mcompose.errors import NumericsError

__all__ = ["ROW_BLOCK", "LowRank"]

ROW_BLOCK = 64
"""Rows of one block of the grid on which products are computed."""


@dataclass(frozen=True)
class LowRank:
    """Change of one tensor of the base by an adapter.

    Args:
        key: Key of the tensor in the base.
        shape: Shape of the tensor.
        a: Factor ``A``, shape (rank, inputs); None when the tensor does not have a low-rank part.
        b: Factor ``B``, shape (outputs, rank).
        scale: Factor of the product.
        transposed: True when the base stores the tensor as (inputs, outputs): embeddings and GPT-2's layers.
        magnitude: DoRA's length of each output row; None without DoRA.
        replacement: Tensor that replaces the base's; None when the base's tensor is used.
        addend: Vector that is added, times the scale (the bias of a low-rank layer); None without one.
    """

    key: str
    shape: tuple[int, ...]
    a: TensorEntry | None = None
    b: TensorEntry | None = None
    scale: float = 1.0
    transposed: bool = False
    magnitude: TensorEntry | None = None
    replacement: TensorEntry | None = None
    addend: TensorEntry | None = None

    @property
    def rank(self) -> int:
        """Rank of the product; 0 without a low-rank part."""
        return self.a.shape[0] if self.a is not None else 0

    @property
    def note(self) -> str:
        """Short description of the change, for the ledger."""
        parts = ["replaced by the adapter's"] if self.replacement is not None else []
        if self.rank:
            kind = "DoRA" if self.magnitude is not None else "LoRA"
            parts.append(f"{kind} rank {self.rank}, scale {self.scale:g}")
        if self.addend is not None:
            parts.append("bias added")
        return "; ".join(parts)

    def fault(self) -> str:
        """Returns why the adapter's tensors do not fit the base's; empty when they do."""
        faults = (self._product_fault(), self._magnitude_fault())
        vectors = [entry for entry in (self.replacement, self.addend) if entry is not None]
        wrong = [f"it brings shape {entry.shape} for {self.shape}" for entry in vectors if entry.shape != self.shape]
        return next((text for text in (*faults, *wrong) if text), "")

    def _product_fault(self) -> str:
        if self.a is None and self.b is None:
            return ""
        if self.a is None or self.b is None:
            return "one of its two factors is missing"
        if not len(self.a.shape) == len(self.b.shape) == len(self.shape) == 2:
            return "only matrices can be folded, not convolutions; fold it with PEFT (merge_and_unload)"
        product = (self.b.shape[0], self.a.shape[1])
        if self.a.shape[0] != self.b.shape[1] or self.shape != (product[::-1] if self.transposed else product):
            return f"factors of shapes {self.b.shape} and {self.a.shape} do not make {self.shape}"
        return ""

    def _magnitude_fault(self) -> str:
        if self.magnitude is None:
            return ""
        if self.a is None or self.transposed:
            return "DoRA on an embedding or a transposed layer is not supported; fold it with PEFT (merge_and_unload)"
        rows = self.shape[0]
        if self.magnitude.shape not in {(rows,), (rows, 1), (1, rows)}:
            return f"its magnitude has shape {self.magnitude.shape} for {rows} rows"
        return ""

    def apply(self, weight: NDArray[np.float32], rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Returns the adapted tensor, or some rows of it.

        Args:
            weight: The base's values of these rows, float32; not changed.
            rows: Range of rows, end not included; None for the whole tensor.

        Returns:
            A new float32 array of the same shape.

        Raises:
            NumericsError: A row has length zero, so that DoRA cannot set its length.
        """
        result = read_float32(self.replacement, rows) if self.replacement is not None else weight.copy()
        if self.addend is not None:
            result += read_float32(self.addend, rows) * np.float32(self.scale)
        if self.a is not None:
            result += self.delta(rows)
        if self.magnitude is not None:
            lengths = np.sqrt(np.einsum("ij,ij->i", result, result, dtype=np.float64)).astype(np.float32)
            if not lengths.all():
                raise NumericsError(f"A row of '{self.key}' has length zero; DoRA cannot scale it.")
            first, last = rows or (0, self.shape[0])
            result *= (read_float32(self.magnitude).reshape(-1)[first:last] / lengths)[:, None]
        return result

    def delta(self, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Computes ``s * B @ A`` for some rows of the tensor (``s * (B @ A).T`` where it is stored transposed).

        Args:
            rows: Range of rows, end not included; None for all.

        Returns:
            float32, of shape (rows, columns).
        """
        first, last = rows or (0, self.shape[0])
        delta = np.empty((last - first, self.shape[1]), np.float32)
        if first == last or self.a is None or self.b is None:
            delta[:] = 0
            return delta
        inner = read_float32(self.b if self.transposed else self.a)
        right = np.ascontiguousarray(inner.T) if self.transposed else inner
        outer = read_float32(self.a) if self.transposed else None
        for start in range(first - first % ROW_BLOCK, last, ROW_BLOCK):
            stop = min(start + ROW_BLOCK, self.shape[0])
            block = self._left(outer, start, stop) @ right
            keep = slice(max(start, first) - start, min(stop, last) - start)
            delta[max(start, first) - first : min(stop, last) - first] = block[keep]
        delta *= np.float32(self.scale)
        return delta

    def _left(self, outer: NDArray[Any] | None, start: int, stop: int) -> NDArray[np.float32]:
        """Returns rows of the left factor."""
        if outer is not None:
            return np.ascontiguousarray(outer[:, start:stop].T)
        assert self.b is not None
        return read_float32(self.b, (start, stop))

"""Matrix products on the CPU with oneDNN, if PyTorch has it.

``torch.mm`` calls MKL, which uses only half of the vector width on processors that are not Intel's.
There it takes twice the time of oneDNN, the library behind PyTorch's convolutions. The product of
oneDNN is called through the operator that ``torch.compile`` generates for linear layers.

Shape shorthand:

    B: number of rows of a block
    K: number of columns
    O: number of outputs
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RowProduct", "gather_dtype", "sum_of_outer_products"]


def gather_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the interpolation; half precision is too coarse for positions."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _onednn_has(dtype: torch.dtype) -> bool:
    """Return True if oneDNN supports this dtype on this machine, and PyTorch exposes it."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _linear(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")


class RowProduct:
    """Compute ``rows @ matrix.T + bias`` for many blocks of rows; the matrix is prepared once.

    The dtype is that of the matrix if oneDNN supports it. Otherwise half precisions become float32.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, block: int) -> None:
        """Prepare the matrix.

        Args:
            matrix: (O, K).
            bias: (O,) or None.
            block: number of rows B of most calls, for which the memory layout is chosen.
        """
        self._onednn = _onednn_has(matrix.dtype)
        self.dtype = matrix.dtype if self._onednn else gather_dtype(matrix.dtype)
        matrix = matrix.to(self.dtype)
        if self._onednn:
            matrix = torch.ops.mkldnn._reorder_linear_weight(matrix, block)
        self._matrix = matrix
        self._bias = None if bias is None else bias.to(self.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply rows (B, K) to (B, O)."""
        rows = rows.to(self.dtype)
        if self._onednn:
            return _linear(rows, self._matrix, self._bias)
        return F.linear(rows, self._matrix, self._bias)


def sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left.T @ right``: (B, O), (B, K) -> (O, K)."""
    if _onednn_has(left.dtype):
        return _linear(left.t(), right.t(), None)
    return torch.mm(left.t(), right)

"""Matrix products on the CPU, by oneDNN where PyTorch has it.

``torch.mm`` calls MKL, which uses half of the vector width on processors of other makers than its
own: there it takes twice the time of oneDNN, the library behind PyTorch's convolutions. PyTorch
reaches oneDNN's product through the operator that ``torch.compile`` generates for linear layers.

Shapes: B rows of a block, K columns, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RowProduct", "gather_dtype", "sum_of_outer_products"]


def gather_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision to interpolate in: half precisions do not hold positions and weights well."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in this precision here, and PyTorch lets us call it."""
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
    """``rows @ matrix.T + bias`` for many blocks of rows; the matrix is prepared once.

    The precision is that of the matrix where oneDNN has it, else float32 (float64 stays).
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None, block: int) -> None:
        """Args:
        matrix: (O, K).
        bias: (O,) or None.
        block: B of most calls, for which the matrix is laid out.
        """
        self._onednn = _onednn_has(matrix.dtype)
        self.dtype = matrix.dtype if self._onednn else gather_dtype(matrix.dtype)
        matrix = matrix.to(self.dtype)
        if self._onednn:
            matrix = torch.ops.mkldnn._reorder_linear_weight(matrix, block)
        self._matrix = matrix
        self._bias = None if bias is None else bias.to(self.dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """(B, K) -> (B, O)."""
        rows = rows.to(self.dtype)
        if self._onednn:
            return _linear(rows, self._matrix, self._bias)
        return F.linear(rows, self._matrix, self._bias)


def sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``: (B, O), (B, K) -> (O, K)."""
    if _onednn_has(left.dtype):
        return _linear(left.t(), right.t(), None)
    return torch.mm(left.t(), right)

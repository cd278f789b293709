"""Autocast of the simulated device: C++'s kernels look at the device, which is "meta" there."""

import contextlib
import functools

import torch
from torch.utils._pytree import tree_leaves, tree_map

_KEY = torch._C.DispatchKey.AutocastCUDA


def names(text: str) -> frozenset[str]:
    """Return the names of operators in a text."""
    return frozenset(text.split())


# What autocast runs in half precision, in float32, and in the widest precision of the arguments.
LOWER_PRECISION = names(
    "conv1d conv2d conv_transpose2d convolution _convolution prelu addmm matmul einsum mm linear "
    "baddbmm bmm"
)
_FLOAT32 = names(
    "exp log log2 pow rsqrt reciprocal softplus layer_norm group_norm nll_loss kl_div l1_loss "
    "smooth_l1_loss huber_loss mse_loss binary_cross_entropy_with_logits cdist prod softmax "
    "log_softmax cumsum sum norm logsumexp"
)
_WIDEST = names("cat stack addcmul addcdiv dot index_put scatter_add tensordot grid_sampler")


def register_autocast(library: torch.library.Library, tensor_type: type[torch.Tensor]) -> None:
    """Register Python kernels for the dispatch key AutocastCUDA.

    Args:
        library: library for "aten"; the kernels disappear with it.
        tensor_type: type of the tensors that are cast.
    """
    for kind in (LOWER_PRECISION, _FLOAT32, _WIDEST):
        for packet in (getattr(torch.ops.aten, name) for name in sorted(kind)):
            for op in (getattr(packet, overload) for overload in packet.overloads()):
                with contextlib.suppress(RuntimeError):  # an overload for TorchScript only
                    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _KEY.name):
                        kernel = functools.partial(_run, tensor_type, kind, op)
                        library.impl(op.name().removeprefix("aten::"), kernel, _KEY.name)


def _run(tensor_type, kind, op, *args, **kwargs):
    """Run an operator on arguments that are cast as autocast does."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    dtype = torch.get_autocast_dtype("cuda") if kind is LOWER_PRECISION else torch.float32
    if kind is _WIDEST and all(t.dtype != torch.float32 for t in tensors):
        dtype = None

    def cast(x):
        if dtype is None or not isinstance(x, tensor_type) or not x.is_floating_point():
            return x
        return x if x.dtype == torch.float64 else x.to(dtype)

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
        return op(*tree_map(cast, args), **tree_map(cast, kwargs))

"""Pickles of numpy arrays and plain values, read without running code.

A pickle can call any function while it is read. :func:`load_arrays` resolves only the names that
arrays, numbers, text and plain containers need, and refuses all others.
"""

import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np

__all__ = ["UnknownGlobalError", "load_arrays"]


class UnknownGlobalError(pickle.UnpicklingError):
    """The pickle would import something other than arrays; the message names it."""


def load_arrays(file: IO[bytes]) -> Any:
    """Read a pickle of arrays and plain values.

    Args:
        file: a file opened in binary mode.

    Raises:
        UnknownGlobalError: the pickle needs a name that is not allowed.
        Exception: the pickle is damaged; almost any type is possible.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for ``_codecs.encode``, by which pickles before protocol 3 spell bytes."""
    if encoding != "latin1":
        raise UnknownGlobalError(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


# numpy's own names for these moved between releases; the functions are those of the installed one.
_reconstruct: Any = np.zeros(1).__reduce__()[0]
_scalar: Any = np.float64(0).__reduce__()[0]
_from_buffer: Any = np.zeros(1).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UnknownGlobalError(f"{module}.{name}")
        return _ALLOWED[module, name]

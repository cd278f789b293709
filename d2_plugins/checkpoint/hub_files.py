"""Files of repositories on the Hugging Face Hub: ``hf://OWNER/NAME[@REVISION][/FILE]``."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

__all__ = [
    "HUB_PREFIX",
    "WEIGHTS_FILE",
    "HubName",
    "check_repository",
    "download",
    "download_config",
    "download_run",
]

HUB_PREFIX = "hf://"
# The weights in the repositories that ``d2-plugins push`` makes.
WEIGHTS_FILE = "model_final.pth"
_CONFIG_FILE = "config.yaml"

_REPOSITORY = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True)
class HubName:
    """A parsed ``hf://`` name.

    Attributes:
        repository: ``OWNER/NAME``.
        file: path in the repository; "" if the name has none.
        revision: branch, tag or commit; None for the main branch.
    """

    repository: str
    file: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> "HubName":
        """Parse ``hf://OWNER/NAME``, ``hf://OWNER/NAME@v1`` or ``hf://OWNER/NAME/file.pth``.

        Raises:
            UsageError: it has another form.
        """
        found = re.fullmatch(rf"{HUB_PREFIX}({_REPOSITORY})(?:@([\w.-]+))?(?:/(.+))?", name)
        if found is None:
            raise UsageError(f"'{name}' is not a name of the hub; allowed: hf://OWNER/NAME")
        repository, revision, file = found.groups()
        return cls(repository, file or "", revision)


def check_repository(name: str) -> str:
    """Return the name of a repository to write to.

    Raises:
        UsageError: it is not of the form ``OWNER/NAME``.
    """
    if not re.fullmatch(_REPOSITORY, name):
        raise UsageError(f"'{name}' is not a repository of the hub; allowed: OWNER/NAME")
    return name


def download(repository: str, filename: str, revision: str | None = None) -> str:
    """Return the path of a file, downloaded once into the cache of huggingface_hub.

    Raises:
        OSError: it is not in the cache and cannot be downloaded; the message says where to get it.
    """
    from huggingface_hub import constants, hf_hub_download

    try:
        return str(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # many kinds: no network, offline mode, a proxy's answer
        branch = revision or "main"
        raise OSError(
            f"'{filename}' of huggingface.co/{repository} is not in the cache "
            f"({constants.HF_HUB_CACHE}) and cannot be downloaded: {error}\nFetch it on a machine "
            f"with access, from https://huggingface.co/{repository}/blob/{branch}/{filename}, and "
            "set MODEL.WEIGHTS to that local file (any folder, same extension)."
        ) from error


def download_config(name: str) -> str:
    """Return the path of the config of a repository.

    Args:
        name: ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.

    Raises:
        UsageError: the name has another form, or the file can be neither found nor downloaded.
    """
    hub = HubName.parse(name)
    try:
        return download(hub.repository, _CONFIG_FILE, hub.revision)
    except OSError as error:
        raise UsageError(str(error)) from error


def download_run(name: str) -> Path:
    """Return the path of the weights of a repository, next to which is their ``config.yaml``.

    Args:
        name: see :meth:`HubName.parse`; without a file, the weights are ``WEIGHTS_FILE``.

    Raises:
        UsageError: the name has another form, or a file can be neither found nor downloaded.
    """
    hub = HubName.parse(name)
    try:
        weights = download(hub.repository, hub.file or WEIGHTS_FILE, hub.revision)
        download(hub.repository, _CONFIG_FILE, hub.revision)
    except OSError as error:
        raise UsageError(str(error)) from error
    return Path(weights)

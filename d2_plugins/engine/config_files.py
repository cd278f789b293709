"""Configs from files and KEY VALUE pairs; a mistake is named, with what is near."""

import difflib
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode

from .. import model_zoo
from ..config import get_cfg
from .errors import UsageError

__all__ = ["find_config", "nearest", "read_config"]


def read_config(config_file: str | None, opts: Sequence[str] = ()) -> CfgNode:
    """The default config with a file and KEY VALUE pairs merged in.

    Args:
        config_file: a path, or a zoo name such as "csp_cascade.yaml"; None or "" is no file.
        opts: KEY VALUE pairs.

    Raises:
        UsageError: the file is missing, unsafe or no YAML, a key is unknown, or a value has the
            wrong type.
    """
    cfg = get_cfg()
    if config_file:
        _merge_file(cfg, config_file)
    _merge_opts(cfg, list(opts))
    return cfg


def find_config(config_file: str) -> str:
    """Path of a config, given its path or its zoo name.

    Raises:
        UsageError: there is no such config; the message names the nearest.
    """
    try:
        return model_zoo.find_config(config_file)
    except FileNotFoundError as error:
        raise UsageError(f"There is no config file '{config_file}'. {error}") from error


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    path = find_config(config_file)
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(
            f"{config_file} is refused: it holds a YAML tag that could run code ({error.problem})"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{config_file} is not valid YAML: {error}") from error
    except (KeyError, ValueError, AssertionError) as error:
        raise UsageError(f"{config_file}: {_explain(error, cfg)}") from error


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    try:
        cfg.merge_from_list(opts)
    except (KeyError, ValueError, AssertionError) as error:
        bad = [key for key in opts[::2] if key not in set(_keys(cfg))]
        if bad:
            raise UsageError(_unknown_key(bad[0], cfg)) from error
        raise UsageError(str(error)) from error


def _explain(error: Exception, cfg: CfgNode) -> str:
    message = str(error).strip("\"'")
    if "Non-existent config key" in message:
        return _unknown_key(message.rsplit(": ", 1)[-1], cfg)
    return message


def _unknown_key(key: str, cfg: CfgNode) -> str:
    known = list(_keys(cfg))
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = ", ".join(same_name[:3]) or nearest(key, known)
    return f"There is no config key '{key}'. Nearest: {near}"


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def nearest(name: str, known: list[str]) -> str:
    """Those of ``known`` that ``name`` may be a misspelling of, in words."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.5)) or "none is near"

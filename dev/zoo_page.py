"""The page of the model zoo: the text of docs/zoo.yaml and the measurements of each config."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path, PurePosixPath

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from d2_plugins import model_zoo
from d2_plugins.benchmark.complexity import count_costs
from d2_plugins.benchmark.fixed_work import FixedWork, build_fixed_work
from d2_plugins.benchmark.timing import median_ratio
from d2_plugins.config import get_cfg

__all__ = [
    "Entry",
    "Measured",
    "baseline_cfg",
    "check_entries",
    "count_parameters",
    "format_page",
    "measure",
    "read_entries",
    "read_measured",
    "trainable_configs",
]

_HEADER = """# Model zoo

Train or evaluate any config of this page by its name:

```bash
d2-plugins train --config-file Demo/faster_rcnn.yaml --num-gpus 0
```

In Python, `d2_plugins.model_zoo.get_config(name)` returns the config. This page is written by
`dev/make_zoo.py` from `docs/zoo.yaml` and the configs; edit those and not this page.

- **Figure**: result reported by the paper or by the named source. Blank: not known for this model.
  Training recipes differ, so compare our results with a baseline of the same recipe.
- **Ours**: our result, with the command that trained it. Blank: not trained to the end.
- **Parameters**: number of parameters in millions, without those of frozen norms.
- **GFLOPs**: multiply-adds in billions, as `d2-plugins analyze` counts them, for one image of the
  given size. This is the size to which the config resizes a photo with aspect ratio 3:2 in testing.
  The box head has the given number of RoIs, and a mask head {detections} detections.
- **Time**: CPU time relative to detectron2's Faster R-CNN with R-50-FPN and 1000 RoIs on 800 x
  1216, measured in turn. Blank: not measured.
"""
_COLUMNS = (
    *("config", "what it is", "figure", "ours", "parameters"),
    *("image", "RoIs", "GFLOPs", "time"),
)
_FIRST_MEASURED = _COLUMNS.index("parameters")


@dataclass(frozen=True)
class Entry:
    """The hand-written part of a config's row.

    Attributes:
        what: description of the config in one sentence.
        figure: a published result, e.g. "box AP 40.5".
        source: who reports the figure, and where.
        ours: our own result.
        command: command that trained it.
    """

    what: str
    figure: str = ""
    source: str = ""
    ours: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers without their source.

        Raises:
            ValueError: there is a figure without its source, or ours without its command.
        """
        if not self.what:
            raise ValueError("'what' must say what the config is")
        if bool(self.figure) != bool(self.source):
            raise ValueError("'figure' and 'source' go together")
        if bool(self.ours) != bool(self.command):
            raise ValueError("'ours' and 'command' go together")


@dataclass(frozen=True)
class Measured:
    """The measured cells of a config's row, as text.

    Attributes:
        parameters: number of parameters in millions.
        image: height x width of the image.
        rois: number of RoIs in the box head; empty if there is no box head.
        gflops: multiply-adds in billions.
        time: time relative to the baseline's; empty if not measured.
    """

    parameters: str
    image: str = field(default="")
    rois: str = field(default="")
    gflops: str = field(default="")
    time: str = field(default="")


def trainable_configs() -> list[str]:
    """Return the names of the zoo's configs, without those that are only a base of others."""
    names = model_zoo.list_configs()
    return [name for name in names if not PurePosixPath(name).name.startswith("Base-")]


def read_entries(path: Path) -> dict[str, Entry]:
    """Read the hand-written file: names of configs, each with the fields of :class:`Entry`.

    Raises:
        ValueError: an entry has an unknown field or is not complete; the message names it.
    """
    entries = {}
    for name, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            entries[name] = Entry(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return entries


def check_entries(entries: Mapping[str, Entry], configs: Sequence[str]) -> None:
    """Compare the entries with the existing configs.

    Raises:
        ValueError: a config has no entry, or an entry has no config.
    """
    without_entry = sorted(set(configs) - set(entries))
    without_config = sorted(set(entries) - set(configs))
    if without_entry or without_config:
        raise ValueError(
            f"configs without an entry: {', '.join(without_entry) or 'none'}; "
            f"entries without a config: {', '.join(without_config) or 'none'}"
        )


def count_parameters(model: nn.Module) -> str:
    """Return the number of parameters in millions, as the page shows it."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"


def measure(name: str, *, repeats: int = 0) -> Measured:
    """Build a config's model on the CPU with random weights and measure it.

    Args:
        name: name of the config.
        repeats: number of timings of the model and the baseline in turn; 0 leaves the time out.
    """
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    work = build_fixed_work(cfg)
    costs = count_costs(work.model, _run(work))
    has_rois = hasattr(work.model, "roi_heads")
    height, width = work.size
    return Measured(
        parameters=count_parameters(work.model),
        image=f"{height} x {width}",
        rois=str(work.num_proposals) if has_rois else "",
        gflops=f"{sum(costs.flops.values()) / 1e9:.1f}",
        time=f"{_time_ratio(work, repeats):.2f}" if repeats else "",
    )


def _run(work: FixedWork) -> Callable[[], object]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        image = torch.rand(3, *work.size) * 255
    return torch.no_grad()(partial(work, image))


def _time_ratio(work: FixedWork, repeats: int) -> float:
    baseline = build_fixed_work(baseline_cfg())
    return median_ratio(_run(work), _run(baseline), repeats=repeats)


def baseline_cfg() -> CfgNode:
    """Return the config of detectron2's faster_rcnn_R_50_FPN_1x, on the CPU."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Base-RCNN-FPN.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 50
    return cfg


def format_page(
    entries: Mapping[str, Entry], measured: Mapping[str, Measured], *, configs_at: str
) -> str:
    """Return the page in Markdown: a table for each folder, first that of the zoo's root.

    Args:
        entries: entries by name of the config.
        measured: measurements of the same configs.
        configs_at: path of the configs' folder, relative to the page.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(entries, key=lambda name: ("/" in name, name)):
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    detections = get_cfg().TEST.DETECTIONS_PER_IMAGE
    lines = [_HEADER.format(detections=detections)]
    for folder, names in folders.items():
        lines += [f"## {'Flagship' if folder == '.' else folder}", "", _line(_COLUMNS)]
        lines.append("|---" * len(_COLUMNS) + "|")
        for name in names:
            entry, values = entries[name], measured[name]
            cells = [f"[{PurePosixPath(name).stem}]({configs_at}/{name})", entry.what]
            cells.append(f"{entry.figure} ({entry.source})" if entry.figure else "")
            cells.append(f"{entry.ours} (`{entry.command}`)" if entry.ours else "")
            cells += [getattr(values, f.name) for f in fields(values)]
            lines.append(_line(cells))
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def read_measured(page: str, *, configs_at: str) -> dict[str, Measured]:
    """Return the measured cells of a page of :func:`format_page`, by name of the config."""
    measured = {}
    for line in page.splitlines():
        found = re.match(rf"\| \[[^\]]*\]\({re.escape(configs_at)}/([^)]*)\)", line)
        if found:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            measured[found.group(1)] = Measured(*cells[_FIRST_MEASURED:])
    return measured

"""Output folders as runs leave them."""

import json
from pathlib import Path


def write_run(folder: Path, *, slope: float, with_mask: bool = False) -> Path:
    """Write a metrics.json that ends in the middle of a line."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(19, 200, 20):
        row = {"iteration": i, "total_loss": 3 - slope * i, "loss_cls": 1.5 - slope * i, "lr": 0.1}
        if with_mask:
            row["loss_mask"] = 1.0
        if i in (99, 199):
            row["bbox/AP"] = slope * 1000 * i / 100
            row["bbox/AP50"] = 50.0
        rows.append(json.dumps(row))
    (folder / "metrics.json").write_text("\n".join(rows) + '\n{"iteration": 2')
    return folder


def two_runs(folder: Path) -> list[Path]:
    """Write two runs, of which the second has masks too."""
    plain = write_run(folder / "plain", slope=0.005)
    return [plain, write_run(folder / "flagship", slope=0.01, with_mask=True)]

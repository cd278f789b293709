"""The model card of a run: what the model is, how it was trained, how good it is, how to load it.

Model cards: Mitchell et al., FAT* 2019. The head of the file is the metadata that the Hugging Face
Hub reads.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data.classes import Classes, count_classes
from ..report.facts import data_facts, describe_model, training_facts
from ..report.html import number
from ..report.run import Results, Run

__all__ = ["model_card"]

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASKS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


def model_card(
    run: Run,
    cfg: CfgNode,
    *,
    repository: str,
    weights: str,
    classes: Classes | None,
    license_id: str | None = None,
) -> str:
    """Return the model card of a checkpoint, in Markdown.

    Args:
        run: the files of the run.
        cfg: its config.
        repository: ``OWNER/NAME``.
        weights: file name of the checkpoint in the folder of the run; the figures are its own.
        classes: classes of the model, if they are known.
        license_id: identifier such as "apache-2.0"; None leaves a line to fill in.
    """
    results = run.results_of(weights)
    head, rows = data_facts(cfg)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja").render(
        metadata=_metadata(cfg, repository, results, license_id).to_yaml(),
        name=repository.partition("/")[2],
        repository=repository,
        license=license_id,
        parts=list(describe_model(cfg)),
        class_rows=[
            [name, str(id_)] for name, id_ in zip(classes.names, classes.category_ids, strict=True)
        ]
        if classes
        else [],
        num_classes=count_classes(cfg),
        facts=list(_public_facts(run)),
        config_file=Path(run.config_file).name,
        train=", ".join(cfg.DATASETS.TRAIN),
        counts=[head, *rows] if rows else [],
        columns=_COLUMNS,
        results=list(_result_rows(results)),
        weights=weights,
        sizes=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        confidence=0.5,
    )


def _public_facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the facts of the training without the folders of the machine that it ran on."""
    for name, value in training_facts(run):
        if name == "initial weights" and "://" not in value:
            yield name, Path(value).name
        elif name != "command":
            yield name, value


def _cell(text: str) -> str:
    """Keep a value from ending its cell of a Markdown table."""
    return text.replace("|", r"\|").replace("\n", " ")


def _metadata(
    cfg: CfgNode, repository: str, results: dict[str, Results], license_id: str | None
) -> ModelCardData:
    task = "image-segmentation" if cfg.MODEL.MASK_ON else "object-detection"
    evaluations = [
        EvalResult(
            task_type="object-detection" if kind == "bbox" else task,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=f"{_TASKS[kind]}: {metric}",
            metric_value=round(tasks[kind][metric], 2),
        )
        for dataset, tasks in results.items()
        for kind in ("bbox", "segm")
        for metric in ("AP", "AP50")
        if _is_number(tasks.get(kind, {}).get(metric))
    ]
    return ModelCardData(
        license=license_id,
        library_name="detectron2",
        pipeline_tag=task,
        tags=["detectron2", "d2_plugins"],
        model_name=repository.partition("/")[2] if evaluations else None,
        eval_results=evaluations or None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _result_rows(results: dict[str, Results]) -> Iterator[list[str]]:
    for dataset, tasks in results.items():
        for kind, words in _TASKS.items():
            if metrics := tasks.get(kind):
                yield [f"{words}, {dataset}", *(number(metrics.get(c)) for c in _COLUMNS)]

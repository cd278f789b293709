"""COCO evaluation with detectron2's interface and result keys, on an engine that needs no compiler.

detectron2's fast evaluation is in its compiled part; without that, it uses the loops of
pycocotools. faster-coco-eval runs the same algorithm in C++ and is installed as a wheel.
"""

import contextlib
import io
import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..files import atomic_open
from .proposal_recall import ProposalRecall, save_proposals

__all__ = ["ENGINES", "FastCOCOEvaluator", "check_engine", "evaluate_detections"]

logger = logging.getLogger(__name__)

ENGINES = ("faster-coco-eval", "pycocotools")


class FastCOCOEvaluator(COCOEvaluator):
    """detectron2's COCOEvaluator on faster-coco-eval or pycocotools.

    It has the same inputs, files and result keys, with these differences. Files are written
    completely or not at all. Ids of images, categories and annotations may be of any size or kind.
    A model that detects nothing has AP 0 instead of NaN, also per class. Proposals are also
    evaluated at 300 per image and for every area (see
    :class:`~d2_plugins.evaluation.ProposalRecall`). A task whose ground truth lacks masks or
    keypoints is skipped with a warning.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        engine: str = "faster-coco-eval",
        max_dets_per_image: int | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        """Load the ground truth of a dataset.

        Args:
            dataset_name: registered dataset with a ``json_file``, or in detectron2's format.
            tasks: some of "bbox", "segm" and "keypoints"; None takes those of the predictions.
            distributed: collect the predictions of all processes.
            output_dir: folder of ``coco_instances_results.json`` and
                ``instances_predictions.pth``; None writes nothing.
            engine: "faster-coco-eval" or "pycocotools".
            max_dets_per_image: number of detections per image that are evaluated; None takes
                COCO's 100.
            kpt_oks_sigmas: sigma of each keypoint; empty takes COCO's 17.
            allow_cached_coco: reuse the JSON into which an earlier evaluator converted the dataset.

        Raises:
            ValueError: ``engine`` is unknown.
        """
        check_engine(engine)
        super().__init__(
            dataset_name,
            tuple(tasks) if tasks is not None else None,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
            kpt_oks_sigmas=kpt_oks_sigmas,
            allow_cached_coco=allow_cached_coco,
        )
        self._engine = engine
        # Without a folder, the parent does not write files in place.
        self._folder = Path(output_dir) if output_dir else None
        self._output_dir = None

    @property
    def ground_truth(self) -> COCO:
        """The annotations of the dataset."""
        return self._coco_api

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        if self._folder:
            with atomic_open(self._folder / "instances_predictions.pth", "wb") as file:
                torch.save(predictions, file)
        results = list(itertools.chain(*(p["instances"] for p in predictions)))
        self._to_dataset_ids(results)
        if self._folder:
            with atomic_open(self._folder / "coco_instances_results.json") as file:
                file.write(json.dumps(results))
        if not self._do_evaluation:
            logger.info("%s has no annotations to evaluate with", self._metadata.name)
            return
        for task in self._possible_tasks(self._tasks or self._tasks_from_predictions(results)):
            evaluated = evaluate_detections(
                self._coco_api,
                results,
                task,
                engine=self._engine,
                max_dets=self._max_dets_per_image,
                kpt_oks_sigmas=self._kpt_oks_sigmas,
                img_ids=img_ids,
            )
            self._results[task] = self._derive_coco_results(
                evaluated, task, class_names=self._metadata.get("thing_classes")
            )

    def _to_dataset_ids(self, results: list[dict[str, Any]]) -> None:
        """Replace the class indices of the model by the category ids of the JSON, in place."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            return
        category_ids = {index: category_id for category_id, index in to_contiguous.items()}
        for result in results:
            index = result["category_id"]
            if index not in category_ids:
                raise ValueError(
                    f"The model predicted class {index}, but {self._metadata.name} has "
                    f"{len(category_ids)} classes (MODEL.ROI_HEADS.NUM_CLASSES does not fit it)"
                )
            result["category_id"] = category_ids[index]

    def _possible_tasks(self, tasks: Sequence[str]) -> list[str]:
        possible = []
        for task in sorted(tasks):
            field = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[task]
            if all(field in annotation for annotation in self._coco_api.anns.values()):
                possible.append(task)
            else:
                logger.warning("%s is not evaluated: %s lacks it", task, self._metadata.name)
        return possible

    def _eval_box_proposals(self, predictions: list[dict[str, Any]]) -> None:
        proposals = [(p["image_id"], p["proposals"]) for p in predictions]
        if self._folder:
            save_proposals(self._folder / "box_proposals.pkl", proposals)
        if self._do_evaluation:
            recall = ProposalRecall(self._coco_api)
            for image_id, instances in proposals:
                recall.add(image_id, instances)
            self._results["box_proposals"] = recall.results()


def evaluate_detections(
    ground_truth: COCO,
    detections: Sequence[dict[str, Any]],
    task: str,
    *,
    engine: str = "faster-coco-eval",
    max_dets: Sequence[int] = (1, 10, 100),
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Sequence[int] | None = None,
) -> COCOeval:
    """Match detections with ground truth by COCO's rules.

    Args:
        ground_truth: the annotations.
        detections: in COCO's result format; may be empty. Not changed.
        task: "bbox", "segm" or "keypoints".
        engine: "faster-coco-eval" or "pycocotools".
        max_dets: three limits of the number of detections per image; AP uses the last. Keypoints
            always have COCO's limit of 20.
        kpt_oks_sigmas: sigma of each keypoint; empty takes COCO's 17.
        img_ids: ids of the images to evaluate; None evaluates all.

    Returns:
        An evaluated, accumulated and summarized COCOeval of either engine, with ``stats``, and with
        the precisions in ``eval`` (thresholds, recalls, classes, areas, limits). Its image and
        category ids are numbers from 1, in the order of the original ids.

    Raises:
        ValueError: the numbers of keypoints of detections, ground truth and ``kpt_oks_sigmas``
            differ, or a detection has an id that the ground truth lacks.
    """
    api, evaluator = _engine_classes(engine, max_dets)
    images, categories = _numbers(ground_truth.imgs), _numbers(ground_truth.cats)
    # Both engines write into the detections. Without its box, an instance has its mask's area.
    dropped = "bbox" if task == "segm" else None
    copies = [
        {k: v for k, v in d.items() if k != dropped}
        | {
            "image_id": _number(images, d["image_id"], "image"),
            "category_id": _number(categories, d["category_id"], "category"),
        }
        for d in detections
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        truth = _renumbered(ground_truth, api, images, categories)
        evaluated = evaluator(truth, _load_detections(truth, copies), task)
        params = evaluated.params
        params.catIds = sorted(truth.getCatIds())
        if img_ids is not None:
            params.imgIds = [_number(images, image_id, "image") for image_id in img_ids]
        if task != "keypoints":
            params.maxDets = list(max_dets)
        else:
            if len(kpt_oks_sigmas):
                params.kpt_oks_sigmas = np.asarray(kpt_oks_sigmas)
            _check_keypoints(truth, copies, len(params.kpt_oks_sigmas))
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    summary = [line for line in printed.getvalue().splitlines() if line.startswith(" Average")]
    logger.info("%s of %d detections:\n%s", task, len(detections), "\n".join(summary))
    return evaluated


def check_engine(engine: str) -> None:
    """Raise a ValueError if ``engine`` is unknown."""
    if engine not in ENGINES:
        raise ValueError(f"TEST.COCO_EVALUATOR is '{engine}'; allowed: {', '.join(ENGINES)}")


def _engine_classes(engine: str, max_dets: Sequence[int]) -> tuple[Any, Any]:
    """Return the COCO and COCOeval classes of an engine."""
    if engine == "pycocotools":
        # pycocotools always summarizes for 100 detections.
        return COCO, COCOeval if max_dets[-1] == 100 else COCOevalMaxDets
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError(
            "TEST.COCO_EVALUATOR 'faster-coco-eval' needs `pip install faster-coco-eval`; "
            "'pycocotools' gives the same numbers"
        ) from error

    def fast_eval(truth: Any, detections: Any, task: str) -> Any:
        return faster_coco_eval.COCOeval_faster(truth, detections, task, print_function=print)

    return faster_coco_eval.COCO, fast_eval


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    """Number ids from 1 in their own order, in which the engines treat detections of equal score.

    Args:
        ids: integers of any size, or text.
    """
    ordered = sorted(ids, key=lambda id_: (isinstance(id_, str), id_))
    return {id_: number for number, id_ in enumerate(ordered, start=1)}


def _number(numbers: dict[Any, int], id_: Any, kind: str) -> int:
    if id_ not in numbers:
        raise ValueError(f"A detection has the {kind} id {id_!r}, which the ground truth lacks")
    return numbers[id_]


def _renumbered(
    ground_truth: COCO, api: Any, images: dict[Any, int], categories: dict[Any, int]
) -> Any:
    """Return ``ground_truth`` as ``api``, with ids that both engines represent exactly.

    The engines keep ids as doubles or 64-bit integers, and mark a match by the id of an annotation
    and its absence by 0 or -1: large, negative and zero ids would silently lower the AP. The ids
    here are consecutive and begin with 1.
    """
    dataset = ground_truth.dataset
    renumbered = api()
    renumbered.dataset = {
        "images": [image | {"id": images[image["id"]]} for image in dataset["images"]],
        "categories": [item | {"id": categories[item["id"]]} for item in dataset["categories"]],
        "annotations": [
            annotation
            | {
                "id": number,
                "image_id": images[annotation["image_id"]],
                "category_id": categories[annotation["category_id"]],
            }
            for number, annotation in enumerate(dataset["annotations"], start=1)
            # Both engines ignore annotations of images and categories that are not listed.
            if annotation["image_id"] in images and annotation["category_id"] in categories
        ],
    }
    renumbered.createIndex()
    return renumbered


def _load_detections(ground_truth: Any, detections: list[dict[str, Any]]) -> Any:
    if detections:
        return ground_truth.loadRes(detections)
    empty = type(ground_truth)()  # pycocotools' loadRes looks into the first detection
    keys = ("images", "categories")
    empty.dataset = {key: ground_truth.dataset[key] for key in keys} | {"annotations": []}
    empty.createIndex()
    return empty


def _check_keypoints(truth: Any, detections: list[dict[str, Any]], num_sigmas: int) -> None:
    annotations = itertools.chain(truth.anns.values(), detections)
    counts = {len(a["keypoints"]) // 3 for a in annotations if "keypoints" in a}
    if counts - {num_sigmas}:
        raise ValueError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {num_sigmas} values (empty means COCO's 17), but ground "
            f"truth and detections have {sorted(counts)} keypoints; these must be equal"
        )

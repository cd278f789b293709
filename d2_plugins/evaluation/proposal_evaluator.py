"""Recall of the proposals that a model returns, or that a two-stage detector uses inside."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from torch import nn

from .proposal_recall import LIMITS, ProposalRecall, save_proposals

__all__ = ["ProposalRecallEvaluator", "ProposalRecorder"]

logger = logging.getLogger(__name__)

# Key of ProposalRecorder; it is not "proposals", which other evaluators read.
_RECORDED = "recorded_proposals"
_FINAL = "box_proposals"


class ProposalRecorder(nn.Module):
    """A model whose outputs also contain the proposals that it used.

    Every output dict gets ``recorded_proposals``, a dict from a name to Instances with
    ``proposal_boxes`` in pixels of the original image and ``objectness_logits``. "box_proposals"
    are the proposals that the proposal generator returned. If the generator has a method
    ``stage_proposals(images, features) -> dict[str, list[Instances]]``, there is also
    "box_proposals_<stage>" for each stage. The other outputs of the model do not change.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model.

        Args:
            model: a model with a ``proposal_generator``, such as GeneralizedRCNN or
                ProposalNetwork, or a DistributedDataParallel around it.

        Raises:
            ValueError: the model has no proposal generator.
        """
        super().__init__()
        inner: Any = getattr(model, "module", model)
        if getattr(inner, "proposal_generator", None) is None:
            raise ValueError(
                "TEST.PROPOSAL_RECALL is True, but the model "
                f"({type(inner).__name__}) has no proposal generator; allowed: False"
            )
        self.model = model
        self.training = model.training
        self._generator = [inner.proposal_generator]  # in a list: not a second submodule

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the outputs of the model with the proposals added."""
        generator = self._generator[0]
        recorded: dict[str, list[Instances]] = {}
        generator_inputs: list[Any] = []

        def record(module: nn.Module, args: tuple[Any, ...], returned: tuple[Any, ...]) -> None:
            # Copies: ProposalNetwork rescales its proposals in place.
            recorded[_FINAL] = [_copy(p) for p in returned[0]]
            generator_inputs[:] = args[:2]

        handle = generator.register_forward_hook(record)
        try:
            outputs = self.model(batched_inputs)
        finally:
            handle.remove()
        if hasattr(generator, "stage_proposals"):
            for stage, proposals in generator.stage_proposals(*generator_inputs).items():
                recorded[f"{_FINAL}_{stage}"] = proposals
        for i, (image, output) in enumerate(zip(batched_inputs, outputs, strict=True)):
            output[_RECORDED] = {
                name: _to_original(proposals[i], image) for name, proposals in recorded.items()
            }
        return outputs


class ProposalRecallEvaluator(DatasetEvaluator):
    """Average recall of proposals: ``box_proposals/AR@100``, ``ARs@100``, ... in percent.

    It reads the proposals that :class:`ProposalRecorder` adds, also per stage
    (``box_proposals_stage1/AR@100``), or the "proposals" of detectron2's ProposalNetwork. Each
    image is counted at once, so memory does not grow with the dataset.
    """

    def __init__(
        self,
        ground_truth: COCO,
        *,
        limits: Sequence[int] = LIMITS,
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        """Initialize the evaluator.

        Args:
            ground_truth: the annotations, e.g. :attr:`FastCOCOEvaluator.ground_truth`.
            limits: numbers of proposals per image.
            distributed: sum over all processes.
            output_dir: folder of ``box_proposals.pkl``, a file of the final proposals for
                ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``; None writes nothing.
        """
        self._ground_truth = ground_truth
        self._limits = limits
        self._distributed = distributed
        self._folder = Path(output_dir) if output_dir else None
        self.reset()

    def reset(self) -> None:
        """Discard the counts of all images."""
        self._recalls: dict[str, ProposalRecall] = {}
        self._final: list[tuple[int, Instances]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the proposals of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``recorded_proposals`` or ``proposals``.

        Raises:
            ValueError: an output has neither.
        """
        for image, output in zip(inputs, outputs, strict=True):
            for name, proposals in _proposals_of(output).items():
                proposals = proposals.to(torch.device("cpu"))
                if name not in self._recalls:
                    self._recalls[name] = ProposalRecall(self._ground_truth, limits=self._limits)
                self._recalls[name].add(image["image_id"], proposals)
                if self._folder and name == _FINAL:
                    self._final.append((image["image_id"], proposals))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return the recalls over all processes; None except in the main process."""
        recalls, final = self._recalls, self._final
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((recalls, final), dst=0)
            if not comm.is_main_process():
                return None
            recalls = _merge([r for r, _ in gathered])
            final = [pair for _, pairs in gathered for pair in pairs]
        if self._folder:
            save_proposals(self._folder / "box_proposals.pkl", final)
        results = {name: recall.results() for name, recall in recalls.items()}
        for name, values in results.items():
            logger.info("Average recall of %s:\n%s", name, create_small_table(values))
        return results


def _proposals_of(output: Mapping[str, Any]) -> dict[str, Instances]:
    if _RECORDED in output:
        return output[_RECORDED]
    if "proposals" in output:
        return {_FINAL: output["proposals"]}
    raise ValueError(
        "The outputs of the model have no proposals: wrap the model in "
        "d2_plugins.evaluation.ProposalRecorder"
    )


def _copy(proposals: Instances) -> Instances:
    return Instances(
        proposals.image_size,
        proposal_boxes=Boxes(proposals.proposal_boxes.tensor.clone()),
        objectness_logits=proposals.objectness_logits,
    )


def _to_original(proposals: Instances, image: Mapping[str, Any]) -> Instances:
    """Return proposals in pixels of the original image instead of the resized one."""
    height, width = proposals.image_size
    return detector_postprocess(proposals, image.get("height", height), image.get("width", width))


def _merge(per_process: list[dict[str, ProposalRecall]]) -> dict[str, ProposalRecall]:
    merged: dict[str, ProposalRecall] = {}
    for recalls in per_process:
        for name, recall in recalls.items():
            if name in merged:
                merged[name].merge(recall)
            else:
                merged[name] = recall
    return merged

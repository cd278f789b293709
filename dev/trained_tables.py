"""The trained comparisons of docs/benchmarks.md: which models, with which data and schedule."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TABLES", "Results", "Row", "Table"]

Results = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        label: name in the table.
        config: path relative to ``configs/``.
        opts: KEY VALUE pairs of this row alone.
        weights_of: label of another row whose trained weights this row evaluates with its own
            ``opts``; None trains.
    """

    label: str
    config: str
    opts: tuple[str, ...] = ()
    weights_of: str | None = None


@dataclass(frozen=True)
class Table:
    """Models that are trained with the same data and schedule, and the metrics to compare.

    Attributes:
        title: what the table shows.
        rows: the models; a row with ``weights_of`` follows the row it names.
        metrics: column titles and the names of the metrics in ``metrics.json``.
        opts: KEY VALUE pairs of every row.
        seeds: each row is trained once with each of them.
        dataset: its name in the report of the demo, which shows the gain of each part; None leaves
            the table out.
    """

    title: str
    rows: tuple[Row, ...]
    metrics: Mapping[str, str]
    opts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    dataset: str | None = None

    def options(self, row: Row) -> tuple[str, ...]:
        """Return the KEY VALUE pairs of ``row``, except for the seed and the output folder."""
        return (*self.opts, *row.opts)

    def named(self, label: str) -> Row:
        """Return the row called ``label``."""
        return next(row for row in self.rows if row.label == label)


_AR = "box_proposals/AR@100"
_BOX_METRICS = {"AP": "bbox/AP", "AP50": "bbox/AP50", "AP75": "bbox/AP75"}
_METRICS = {**_BOX_METRICS, "AR@100": _AR, "AP under occlusion": "bbox_occlusion/AP"}
_FINAL_EVALUATION_ONLY = ("TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "")
_EVERYTHING = (
    *("TEST.PROPOSAL_RECALL", "True", "TEST.CORRUPTIONS", "['occlusion']", "TEST.REPORT", "False"),
    *_FINAL_EVALUATION_ONLY,
)
# Trained with about half of the pixels, half of the channels and more frozen stages than
# configs/PennFudan, since each of these tables has 21 trainings. Evaluated with its pixels.
_SMALL = (
    *("INPUT.MIN_SIZE_TRAIN", "(160, 192, 224)", "INPUT.MAX_SIZE_TRAIN", "360"),
    *("MODEL.BACKBONE.FREEZE_AT", "4", "MODEL.FPN.OUT_CHANNELS", "64"),
    *("MODEL.DOUBLE_HEAD.CONV_DIM", "128"),
    *("SOLVER.MAX_ITER", "800", "SOLVER.STEPS", "(600, 740)"),
)

# The cells of a class have one size in all images, so training and evaluation need the same: at 288
# pixels after training at 160 to 224, AP is 8 points lower.
_BCCD = (
    *_SMALL,
    *("INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192"),
    *("SOLVER.BASE_LR", "0.03"),
    *("SOLVER.MAX_ITER", "400", "SOLVER.STEPS", "(300, 370)"),
    *("MODEL.INVERTED_ATTENTION.START_ITER", "200"),
)

_CONV_BOXES = ("MODEL.DOUBLE_HEAD.BOX_FUSION", "conv")
_NO_DUPLICATES = ("MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH", "0.5")
_MORE_PROPOSALS = ("MODEL.RPN.PRE_NMS_TOPK_TEST", "1000", "MODEL.RPN.POST_NMS_TOPK_TEST", "300")

# The demo's config leaves Inverted Attention out and samples fewer RoIs, to save time, and its conv
# head skips near-duplicates.
_DEMO_WITH_ALL_PARTS = (
    *("MODEL.INVERTED_ATTENTION.ENABLED", "True", "MODEL.INVERTED_ATTENTION.START_ITER", "500"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64"),
    *("MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH", "1.0"),
)


def _parts(pattern: str, all_opts: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The same detector with each of the parts, and with all of them.

    Args:
        pattern: path of the configs with ``{}`` for the name of the model.
        all_opts: KEY VALUE pairs of the row with all parts.
    """
    ext, both, everything = "+ Double-Head-Ext", "Cascade RPN + Double-Head-Ext", "all parts"
    ext_config = pattern.format("double_head_ext")
    both_config = pattern.format("crpn_double_head_ext")
    all_config = pattern.format("csp_cascade")
    return (
        Row("Faster R-CNN", pattern.format("faster_rcnn")),
        Row("+ Cascade RPN", pattern.format("faster_rcnn_crpn")),
        Row("+ Inverted Attention", pattern.format("faster_rcnn_IA")),
        Row("+ Double-Head", pattern.format("double_head")),
        Row(ext, ext_config),
        Row(f"{ext}, boxes of the conv head (the paper)", ext_config, _CONV_BOXES, ext),
        Row(both, both_config),
        Row(f"{both}, boxes of the conv head", both_config, _CONV_BOXES, both),
        Row(f"{both}, without near-duplicates", both_config, _NO_DUPLICATES, both),
        Row(everything, all_config, all_opts),
        Row(
            f"{everything}, without near-duplicates",
            all_config,
            (*all_opts, *_NO_DUPLICATES),
            everything,
        ),
    )


def _with_more_proposals(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Add evaluations with 300 proposals instead of 100 of the base, Cascade RPN and all parts."""
    chosen = [rows[0], rows[1], rows[-1]]
    return rows + tuple(
        Row(
            f"{row.label}, 300 proposals",
            row.config,
            (*row.opts, *_MORE_PROPOSALS),
            row.weights_of or row.label,
        )
        for row in chosen
    )


def _training_options(dataset: str, config: str, opts: tuple[str, ...]) -> Table:
    """Double-Head-Ext trained with each option for its conv head, judged by that head's boxes."""
    head = "MODEL.DOUBLE_HEAD"
    options: dict[str, tuple[str, ...]] = {
        "as in the paper": (),
        "zero-initialized residual blocks": (f"{head}.ZERO_INIT_RESIDUAL", "True"),
        "coordinates": (f"{head}.COORDINATES", "True"),
        "twice the learning rate": (f"{head}.CONV_HEAD_LR_FACTOR", "2.0"),
        "GN": (f"{head}.NORM", "GN"),
        "GIoU loss": (
            *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
            *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "8.0"),
        ),
        "foreground RoIs only": (
            *(f"{head}.CONV_HEAD_FOREGROUND_ONLY", "True", f"{head}.LAMBDA_CONV", "1.0"),
        ),
    }
    return Table(
        title=f"Options for the conv head on {dataset}, Double-Head-Ext, boxes of the conv head",
        rows=tuple(Row(label, config, (*own, *_CONV_BOXES)) for label, own in options.items()),
        metrics=_BOX_METRICS,
        opts=(*opts, *_FINAL_EVALUATION_ONLY, "TEST.REPORT", "False"),
    )


TABLES: dict[str, Table] = {
    "shapes-recall": Table(
        title="Recall of 100 proposals on the embedded shapes, proposals alone, 300 iterations",
        rows=(
            Row("RPN", "Demo/faster_rcnn.yaml"),
            Row("Cascade RPN", "Demo/faster_rcnn_crpn.yaml"),
        ),
        metrics={"AR@100": _AR},
        opts=(
            *("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", "1000", "MODEL.RPN.POST_NMS_TOPK_TEST", "1000"),
            *("MODEL.RPN.LOSS_WEIGHT", "1.0", "SOLVER.BASE_LR", "0.02"),
            *("SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "(240,)"),
            *_FINAL_EVALUATION_ONLY,
        ),
    ),
    "shapes": Table(
        title="Embedded shapes, a narrow CSPResNeXt-50 from scratch, 1000 iterations of 8 images",
        rows=_parts("Demo/{}.yaml", _DEMO_WITH_ALL_PARTS),
        metrics=_METRICS,
        opts=("SOLVER.MAX_ITER", "1000", "SOLVER.STEPS", "(720, 920)", *_EVERYTHING),
        dataset="shapes",
    ),
    "penn-fudan": Table(
        title="Penn-Fudan, EfficientNet-Lite0 with ImageNet weights, 800 iterations of 4 images",
        rows=_parts("PennFudan/{}_efficientnet_lite0.yaml"),
        metrics=_METRICS,
        opts=(*_SMALL, *_EVERYTHING),
        dataset="Penn-Fudan",
    ),
    "penn-fudan-options": _training_options(
        "Penn-Fudan", "PennFudan/double_head_ext_efficientnet_lite0.yaml", _SMALL
    ),
    "bccd": Table(
        title="BCCD, EfficientNet-Lite0 with ImageNet weights, 400 iterations of 4 images",
        rows=_with_more_proposals(_parts("BCCD/{}_efficientnet_lite0.yaml")),
        metrics=_METRICS,
        opts=(*_BCCD, *_EVERYTHING),
        dataset="BCCD",
    ),
    "bccd-options": _training_options(
        "BCCD", "BCCD/double_head_ext_efficientnet_lite0.yaml", _BCCD
    ),
}

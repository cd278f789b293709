"""The run report, from folders as runs leave them."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from d2_plugins.evaluation import FastCOCOEvaluator, evaluate_detections
from d2_plugins.report import write_report
from d2_plugins.report.curves import precision_recall
from d2_plugins.report.pictures import box_quality, choose_examples
from d2_plugins.report.run import load_predictions, load_run
from tests.support.toy import toy_cfg, write_toy_coco

NAME = "report_toy"
HOSTILE = "<script>alert('dark')</script>"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Path]:
    """Eight images of two classes, one of which has a hostile name."""
    json_file, image_root = write_toy_coco(tmp_path / "data")
    content = json.loads(json_file.read_text())
    content["categories"][0]["name"] = HOSTILE
    json_file.write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(json_file), str(image_root))
    DatasetCatalog.get(NAME)
    yield json_file
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def run_folder(tmp_path: Path, dataset: Path) -> Path:
    """A run that was killed while it wrote a line of metrics.json."""
    folder = tmp_path / "run & <b>more"
    datasets = ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)]
    cfg = toy_cfg(folder, [*datasets, "SOLVER.MAX_ITER", 500])
    inference = folder / "inference" / NAME
    inference.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (inference / "coco_instances_results.json").write_text(json.dumps(detections(dataset)))
    rows = [
        {"iteration": i, "total_loss": 3 / (i + 1), "loss_cls": 2 / (i + 1), "time": 0.25}
        for i in range(19, 400, 20)
    ]
    rows[5] |= {"bbox/AP": 10.0, "bbox/AP50": 20.0, "rpn/num_pos_anchors": 3.0}
    rows[10] |= {"bbox/AP": 31.25, "bbox/AP50": 52.5, "bbox/APs": math.nan}
    rows[10] |= {f"bbox/AP-{HOSTILE}": 12.5, "bbox/AP-bright": 50.0, "bbox_blur/AP": 17.75}
    rows[10] |= {"box_proposals/AR@100": 61.5, "box_proposals_stage1/AR@100": 42.5}
    rows[10] |= {"box_proposals_blur/AR@100": 51.5, "box_proposals_stage1_blur/AR@100": 32.5}
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "metrics.json").write_text(lines + '\n{"iteration": 419, "total_lo')
    return folder


def detections(json_file: Path) -> list[dict[str, Any]]:
    """Image 3 perfectly, image 5 not at all, the others with shifted boxes."""
    content = json.loads(json_file.read_text())
    rng = np.random.default_rng(0)
    out = []
    for annotation in content["annotations"]:
        if annotation["image_id"] == 5:
            continue
        shift = 0 if annotation["image_id"] == 3 else rng.uniform(1, 5, 2)
        x, y = np.array(annotation["bbox"][:2]) + shift
        out.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": [float(x), float(y), *annotation["bbox"][2:]],
                "score": 0.9 if annotation["image_id"] == 3 else float(rng.uniform(0.5, 0.9)),
            }
        )
    return out


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes and the text of each section."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
            if data.strip():
                self.cells.append(data.strip())


def row_of(page: Page, name: str, length: int) -> list[str]:
    start = page.cells.index(name)
    return page.cells[start : start + length]


def report(folder: Path, *args: Any) -> Page:
    path = write_report(folder, *args)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_vocs_metrics_are_in_the_report(tmp_path: Path) -> None:
    results = {
        "bbox": {"AP": 40.0, "AP50": 61.0},
        "bbox_voc": {"AP": 41.0, "mAP_07": 62.125, "mAP_10": 64.375},
    }
    page = write_report(tmp_path, toy_cfg(tmp_path, []), results).read_text()
    for metric, value in (("11 points", "62.1"), ("area", "64.4")):
        assert re.search(
            rf"{value}.{{0,80}}VOC mAP, {metric}|VOC mAP, {metric}.{{0,80}}{value}", page
        )
    assert "boxes, VOC" in page
    assert "(until VOC 2009)" in page


def test_everything_is_there(run_folder: Path) -> None:
    page = report(run_folder)
    assert "Left out" not in page.text
    assert "left out" not in page.text
    assert "400 of 500, 2 images each" in page.cells
    # Of the last evaluation in metrics.json, by what was evaluated.
    for row in (["boxes", "31.2", "52.5", "–"], ["boxes, blur", "17.8", "–", "–"]):
        start = page.cells.index(row[0])
        assert page.cells[start : start + 4] == row
    proposals = page.cells[page.cells.index("stage 1") :]
    stages = ["stage 1", "42.5", "final", "61.5", "stage 1, blur", "32.5", "final, blur", "51.5"]
    assert proposals[:8] == stages
    assert page.cells[page.cells.index(HOSTILE) + 1] == "12.5"
    assert row_of(page, "SOLVER.MAX_ITER", 3) == ["SOLVER.MAX_ITER", "40000", "500"]
    assert row_of(page, "cls", 2) == ["cls", "classes of the detections"]
    # Data, and the confusion of two classes that are never mistaken for each other.
    assert row_of(page, "images", 2) == ["images", "8"]
    assert "Recommended score threshold for all classes" in page.text
    matrix = page.cells[page.cells.index("not detected") + 1 :]
    assert matrix[0] == HOSTILE
    assert matrix[2] == "0"
    assert matrix[4:6] == ["bright", "0"]
    assert sum(map(int, [*matrix[1:4], *matrix[5:8]])) == 16
    assert "SOLVER.MOMENTUM" not in page.text, "not changed"
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3 + 2 * 6  # three curves, six images twice
    # Each can be enlarged: a link leads to the element around it.
    ids = [attrs["id"] for tag, attrs in page.tags if attrs.get("class") == "zoom"]
    links = [attrs["href"] for tag, attrs in page.tags if attrs.get("class") == "open"]
    assert len(set(ids)) == len(images)
    assert links == [f"#{id_}" for id_ in ids]
    for file in ("loss_curve.png", "ap_curve.png", "predictions.png"):
        with Image.open(run_folder / file) as image:
            assert min(image.size) > 300
    assert not list(run_folder.rglob("*.part"))


def test_self_contained_and_escaped(run_folder: Path) -> None:
    page = report(run_folder)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attrs in page.tags:
        assert all(value.startswith("data:image/") for key, value in attrs.items() if key == "src")
        assert not [key for key in attrs if key.startswith("on")]
        assert all(value.startswith("#") for key, value in attrs.items() if key == "href")
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert not re.findall(r"https?://", text)
    assert "run & <b>more" in page.text, "escaped, so it reads as it is written"
    assert HOSTILE in page.text


def test_a_later_report_replaces_the_file(run_folder: Path) -> None:
    (run_folder / "report.html").write_text("old")
    os.link(run_folder / "report.html", run_folder / "link")
    report(run_folder)
    assert (run_folder / "link").read_text() == "old"


def test_results_come_from_the_best_source(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "inference")  # faster
    (run_folder / "results.json").write_text('{"bbox": {"AP": 44.0}, "minutes": 5.1}')
    assert "44.0" in report(run_folder).cells
    results = {"bbox": {"AP": 77.0}, "segm": {"AP": 66.0}}
    page = report(run_folder, None, results)
    assert page.cells[page.cells.index("masks") + 1] == "66.0"
    assert "44.0" not in page.cells


def test_several_datasets(run_folder: Path) -> None:
    cfg = toy_cfg(run_folder, ["DATASETS.TEST", (NAME, "other")])
    (run_folder / "metrics.json").write_text(
        json.dumps({"iteration": 9, f"{NAME}/bbox/AP": 12.0, "other/bbox/AP-a/b": 34.0})
    )
    assert load_run(run_folder, cfg).results == {
        NAME: {"bbox": {"AP": 12.0}},
        "other": {"bbox": {"AP-a/b": 34.0}},
    }
    page = report(run_folder, cfg)
    assert f"Average precision on {NAME}" in page.cells
    assert "Left out: dataset 'other' is not registered" not in page.text
    assert "inference/other has no coco_instances_results.json" in page.text


def test_empty_folder(tmp_path: Path) -> None:
    page = report(tmp_path)
    for line in (
        "Losses over the iterations: left out, metrics.json has no losses.",
        "AP over the iterations: left out, metrics.json has no evaluation.",
        "Left out: no evaluation has been written.",
        "Left out: config.yaml is missing.",
    ):
        assert line in page.cells
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_report(tmp_path / "nowhere")


def test_stopped_early(run_folder: Path, dataset: Path) -> None:
    inference = run_folder / "inference" / NAME / "coco_instances_results.json"
    lines = (run_folder / "metrics.json").read_text().splitlines()
    diverged = '{"iteration": 39, "total_loss": NaN, "loss_cls": Infinity}'
    (run_folder / "metrics.json").write_text(f"{lines[0]}\n{diverged}")
    foreign = [{"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}]
    inference.write_text(json.dumps(foreign))
    page = report(run_folder)
    assert "40 of 500, 2 images each" in page.cells
    assert "metrics.json has no evaluation" in page.text
    assert "holds predictions for other images or classes" in page.text

    inference.write_text(json.dumps(detections(dataset)))
    shutil.rmtree(dataset.parent / "images")
    page = report(run_folder)
    assert "003.png cannot be read" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2  # losses, precision-recall
    inference.write_text("[]")  # the model found nothing
    assert "cannot be read" in report(run_folder).text
    dataset.unlink()
    assert f"dataset '{NAME}' is not on disk" in report(run_folder).text


def test_predictions_of_detectron2s_own_trainers(run_folder: Path) -> None:
    """They write to inference/ itself; a config may have keys that we do not know."""
    name = "coco_instances_results.json"
    shutil.move(run_folder / "inference" / NAME / name, run_folder / "inference" / name)
    with open(run_folder / "config.yaml", "a") as file:
        file.write("ELSEWHERE:\n  KEY: 3\n")
    page = report(run_folder)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 15
    assert "ELSEWHERE.KEY" in page.cells


def test_low_scores_are_explained(run_folder: Path, dataset: Path) -> None:
    inference = run_folder / "inference" / NAME / "coco_instances_results.json"
    rows = [row | {"score": row["score"] / 3} for row in detections(dataset)]
    inference.write_text(json.dumps(rows))
    page = report(run_folder)
    assert "No detection has a score of at least 0.5: the highest is 0.30." in page.text
    assert "Best: 003.png: box quality 100 of 100" in page.cells
    # Boxes that hit nothing: there is no best image.
    inference.write_text(json.dumps([row | {"bbox": [0, 0, 1, 1]} for row in rows]))
    page = report(run_folder)
    assert "Pictures and tables show scores of at least 0.15" in page.text
    assert "No detection matches an object, so the images are not ranked." in page.text
    assert not [cell for cell in page.cells if cell.startswith(("Best", "Worst"))]
    inference.write_text("[]")
    assert "The model detects nothing on this dataset." in report(run_folder).text


def test_config_is_compared_with_its_own_file(run_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(run_folder / "inference")  # faster
    cfg = toy_cfg(run_folder, ["DATASETS.TEST", (NAME,), "SOLVER.MAX_ITER", 500])
    (tmp_path / "own.yaml").write_text(cfg.dump())
    cfg.SOLVER.MAX_ITER = 600
    session = {"config_file": str(tmp_path / "own.yaml")}
    (run_folder / "run.json").write_text(json.dumps({"sessions": [session]}))
    page = report(run_folder, cfg)
    start = page.cells.index("this run")
    end = page.cells.index(f"All {len(differences(page))} differences from the defaults")
    assert page.cells[start + 1 : end] == ["SOLVER.MAX_ITER", "500", "600"]
    (tmp_path / "own.yaml").unlink()
    assert "own.yaml is not here to compare with" in report(run_folder, cfg).text


def differences(page: Page) -> list[str]:
    """The keys of the table of all differences, the last one of the page."""
    last = max(i for i, cell in enumerate(page.cells) if cell == "this run")
    return page.cells[last + 1 :: 3]


def test_recalls_that_repeat_others_are_left_out(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "inference")  # faster
    cfg = toy_cfg(run_folder, ["MODEL.RPN.POST_NMS_TOPK_TEST", 300, "DATASETS.TEST", (NAME,)])
    recall = {"AR@100": 60.0, "AR@300": 65.0, "AR@1000": 66.0, "ARs@100": 1.0, "ARs@300": 2.0}
    first = {name: value / 2 for name, value in recall.items()}
    tasks = ("box_proposals", "box_proposals_stage1", "box_proposals_stage2")
    results = dict(zip(tasks, (recall, first, dict(recall)), strict=True))
    page = report(run_folder, cfg, results)
    start = page.cells.index("proposals", page.cells.index(f"Proposal recall on {NAME}"))
    assert page.cells[start : start + 12] == [
        *("proposals", "AR@100", "AR@300", "ARs@300"),
        *("stage 1", "30.0", "32.5", "1.0"),
        *("final", "60.0", "65.0", "2.0"),
    ]


def test_best_and_worst(run_folder: Path) -> None:
    best, worst = choose_examples(load_predictions(load_run(run_folder), NAME))
    assert best[0].item["image_id"] == 3
    assert best[0].quality == pytest.approx(1)
    assert worst[0].item["image_id"] == 5
    assert worst[0].quality == 0
    shown = [example.item["image_id"] for example in best + worst]
    assert len(shown) == len(set(shown)) == 6
    qualities = [example.quality for example in best + worst[::-1]]
    assert qualities == sorted(qualities, reverse=True)


def test_precision_recall_is_the_evaluators(run_folder: Path, dataset: Path) -> None:
    predictions = load_predictions(load_run(run_folder), NAME)
    recall, precision = precision_recall(predictions)
    stats = evaluate_detections(
        FastCOCOEvaluator(NAME).ground_truth, detections(dataset), "bbox", engine="pycocotools"
    ).stats
    assert 0.1 < stats[0] < 0.9
    assert np.nanmean(precision) == pytest.approx(stats[0])
    assert np.nanmean(precision[0]) == pytest.approx(stats[1])
    np.testing.assert_allclose(recall, np.linspace(0, 1, 101))


def test_box_quality() -> None:
    gt = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    classes = np.array([0, 1])
    none = np.zeros((0, 4)), np.zeros(0, int)
    assert box_quality(gt, classes, gt, classes) == 1
    assert box_quality(gt, classes, gt, classes[::-1]) == 0
    assert box_quality(gt, classes, *none) == 0
    assert box_quality(*none, gt, classes) == 0
    assert math.isnan(box_quality(*none, *none))
    # IoU 0.8, a second box on the same object, and a miss: 0.8 / (1 + 1 / 2 + 1 / 2).
    boxes = np.array([[0.0, 0, 10, 8], [0, 0, 10, 9]])
    assert box_quality(gt, classes, boxes, np.array([0, 0])) == pytest.approx(0.4)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])  # 500 is the least that headless Chromium takes
def test_in_a_browser(run_folder: Path, dataset: Path, tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    for path in (dataset.parent / "images").glob("*.png"):
        Image.new("RGB", (80, 64), (255, 0, 255)).save(path)
    write_report(run_folder)
    screenshot = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},9000",
         f"--screenshot={screenshot}", (run_folder / "report.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(screenshot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (9000, width, 3)
    magenta = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] > 200)
    assert magenta.sum() > 12 * 100 * 100, "the embedded photographs are not shown"
    background = np.array([0xF4, 0xF6, 0xF8])
    assert (pixels[:, -8:] == background).all(), "something sticks out to the right"

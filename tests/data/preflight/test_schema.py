"""Data that passes the pre-flight check trains and evaluates; other data is refused in one line."""

import copy
import json
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2_plugins.data import check_dataset
from d2_plugins.data.preflight.masks import run_lengths
from d2_plugins.errors import UsageError
from tests.support.toy import write_toy_coco
from tests.support.train_step import train_and_evaluate

pytestmark = pytest.mark.usefixtures("catalogs")

WIDTH, HEIGHT = 80, 64

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
INTEGER = st.integers(-3, 9) | st.integers(-(2**70), 2**70)
ID = INTEGER | st.just("1")
SIDE = st.sampled_from([WIDTH, HEIGHT, float(WIDTH), 0, -1, 2**40])
NUMBER = st.integers(-9, 90) | st.floats(-9, 90) | st.sampled_from([10**400, 1e300, 2**31])
POLYGON = st.lists(NUMBER, min_size=4, max_size=9)
RLE = st.fixed_dictionaries(
    {
        "size": st.sampled_from([[HEIGHT, WIDTH], [WIDTH, HEIGHT], [HEIGHT], None]),
        "counts": st.sampled_from([[HEIGHT * WIDTH], [100, 20, 5000], "l3d0T4", "\\kP1", "", "PP"])
        | st.lists(st.integers(-1, 3000), max_size=4)
        | st.text("0123456789:;<=>?@ABCLMNOPQRSTUlmno", max_size=6),
    }
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "id": ID,
    "image_id": ID,
    "category_id": ID,
    "file_name": st.sampled_from(["000.png", "images/../001.png", "gone.png", "", ".", "a\x00"]),
    "width": SIDE,
    "height": SIDE,
    "bbox": st.lists(NUMBER, min_size=4, max_size=4) | st.lists(NUMBER, max_size=5),
    "area": NUMBER,
    "iscrowd": st.sampled_from([0, 1, True, False, 2, "0", "1", None]),
    "ignore": st.sampled_from([0, 1, False, None]),
    "segmentation": st.lists(POLYGON, max_size=2) | RLE,
    "keypoints": st.none() | st.lists(NUMBER, max_size=6),
    "num_keypoints": JSON,
    "name": st.sampled_from(["dark", "猫", "a b", "", " ", "a\nb", "\ud800", "$\\frac{1}{$"]),
    "supercategory": JSON,
}
FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore"),
        *("segmentation", "keypoints", "num_keypoints"),
    ),
    "categories": ("id", "name", "supercategory"),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Content of a valid JSON of two images, and their folder."""
    json_file, images = write_toy_coco(tmp_path_factory.mktemp("toy"), num_images=2)
    return json.loads(json_file.read_text()), images


def renumber(content: dict[str, Any], key: str, ids: list[int]) -> None:
    """Give images, annotations or categories other ids, everywhere they are named."""
    field = {"images": "image_id", "categories": "category_id"}.get(key)
    new = dict(zip((entry["id"] for entry in content[key]), ids, strict=True))
    for entry in content[key]:
        entry["id"] = new[entry["id"]]
    for annotation in content["annotations"] if field else ():
        annotation[field] = new[annotation[field]]


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, str, Any]]:
    """(list, entry, field, new value) for one to three fields; the field alone to remove it."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(sorted(FIELDS)))
        field = draw(st.sampled_from(FIELDS[kind]))
        value = draw(st.one_of(PLAUSIBLE[field], PLAUSIBLE[field], JSON, st.just(...)))
        found.append((kind, draw(st.integers(0, 3)), field, value))
    return found


def apply(content: dict[str, Any], edits: list[tuple[str, int, str, Any]]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    for kind, number, field, value in edits:
        entry = content[kind][number % len(content[kind])]
        if value is ...:
            entry.pop(field, None)
        else:
            entry[field] = value
    return content


def passes(content: Any, images: Path, *, needs_masks: bool = False) -> bool:
    """Return True if the data passes the check; it then trains and evaluates, or this fails."""
    json_file = images.parent / "changed.json"
    json_file.write_text(json.dumps(content))
    report = check_dataset(json_file, images, needs_masks=needs_masks)
    str(report).encode()  # can be printed
    if report.ok:
        train_and_evaluate(json_file, images, needs_masks=needs_masks)
        return True
    with pytest.raises(UsageError, match=r"changed\.json: ") as refused:
        report.raise_for_errors()
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 1000
    return False


SETTINGS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@settings(SETTINGS, max_examples=80)
@given(edits=changes(), needs_masks=st.booleans())
def test_changed_data_trains_or_is_refused_in_one_line(
    toy: tuple[dict[str, Any], Path], edits: list[tuple[str, int, str, Any]], needs_masks: bool
) -> None:
    content, images = toy
    passes(apply(content, edits), images, needs_masks=needs_masks)


FINITE = st.integers(-9, 90) | st.floats(-9, 90)


@st.composite
def masks(draw: st.DrawFn) -> Any:
    """Polygons, or an RLE as a list or as text."""
    if draw(st.booleans()):
        points = st.lists(st.tuples(FINITE, FINITE), min_size=3, max_size=5)
        return [[v for point in draw(points) for v in point] for _ in range(2)]
    cuts = draw(st.lists(st.integers(0, WIDTH * HEIGHT), max_size=6))
    ends = [*sorted(cuts), WIDTH * HEIGHT]
    counts = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    if draw(st.booleans()):
        rle["counts"] = mask_util.frPyObjects(rle, HEIGHT, WIDTH)["counts"].decode()
    return rle


ALLOWED = st.fixed_dictionaries(
    {},
    optional={
        "bbox": st.lists(FINITE.map(abs), min_size=4, max_size=4),
        "area": st.integers(0, 10**10) | st.floats(0, 1e10),
        "iscrowd": st.sampled_from([0, 0, 1, False, True]),
        "ignore": st.sampled_from([0, False, 0.0]),
        "segmentation": masks(),
        "keypoints": st.none() | st.lists(FINITE, min_size=6, max_size=6),
        "num_keypoints": JSON,
        "attributes": JSON,
    },
)


@settings(SETTINGS, max_examples=15)
@given(annotations=st.lists(ALLOWED, min_size=3, max_size=3), needs_masks=st.booleans())
def test_values_that_the_schema_allows_train(
    toy: tuple[dict[str, Any], Path], annotations: list[dict[str, Any]], needs_masks: bool
) -> None:
    content, images = copy.deepcopy(toy[0]), toy[1]
    for entry, new in zip(content["annotations"], annotations, strict=False):
        entry.update(new)
    assert passes(content, images, needs_masks=needs_masks)


@settings(SETTINGS, max_examples=8)
@given(
    ids=st.tuples(*(st.lists(INTEGER, min_size=n, max_size=n, unique=True) for n in (2, 4, 2))),
    needs_masks=st.booleans(),
)
def test_integer_ids_of_any_size_train(
    toy: tuple[dict[str, Any], Path], ids: tuple[list[int], ...], needs_masks: bool
) -> None:
    content, images = copy.deepcopy(toy[0]), toy[1]
    for key, new in zip(("images", "annotations", "categories"), ids, strict=True):
        renumber(content, key, new)
    assert passes(content, images, needs_masks=needs_masks)


@pytest.mark.parametrize("content", [None, 3, "text", [], [{"image_id": 1, "score": 0.5}], {}])
def test_other_top_level_values_are_refused(content: Any, toy: tuple[dict[str, Any], Path]) -> None:
    assert not passes(content, toy[1])


@settings(SETTINGS, max_examples=30)
@given(kind=st.sampled_from(sorted(FIELDS)), value=JSON, whole=st.booleans())
def test_other_lists_and_entries_are_refused(
    toy: tuple[dict[str, Any], Path], kind: str, value: Any, whole: bool
) -> None:
    content = copy.deepcopy(toy[0])
    if whole:
        content[kind] = value
    else:
        content[kind].append(value)
    assert not passes(content, toy[1])


@given(
    counts=st.lists(st.integers(0, 2**31), min_size=1, max_size=9),
)
def test_run_lengths_are_what_pycocotools_encodes(counts: list[int]) -> None:
    text = mask_util.frPyObjects({"size": [1, 1], "counts": counts}, 1, 1)["counts"].decode()
    assert run_lengths(text).tolist() == counts
    assert run_lengths(counts).tolist() == counts

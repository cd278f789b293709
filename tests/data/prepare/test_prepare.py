"""Archives and folders become a dataset root that detectron2 can use."""

import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin import register_all_coco
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from d2_plugins.data.prepare import prepare as module
from d2_plugins.data.prepare.prepare import prepare, verify
from d2_plugins.data.prepare.recipes import RECIPES
from d2_plugins.errors import UsageError
from tests.support.file_server import Files, serve
from tests.support.helpers import shared_path


def write_coco(folder: Path, counts: dict[str, int]) -> Path:
    """A COCO 2017 of a few images."""
    for split, count in counts.items():
        (folder / f"{split}2017").mkdir(parents=True)
        images = []
        for i in range(1, count + 1):
            name = f"{i:012d}.jpg"
            Image.new("RGB", (8, 6)).save(folder / f"{split}2017" / name)
            images.append({"id": i, "file_name": name, "width": 8, "height": 6})
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        content = {
            "images": images,
            "annotations": [{**box, "iscrowd": 0}],
            "categories": [
                {"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]
            ],
        }
        kind = "image_info" if split == "test" else "instances"
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))
    return folder


def write_coco_archives(folder: Path, counts: dict[str, int]) -> Path:
    """The same in the authors' archives."""
    whole = write_coco(folder / "whole", counts)
    for split in counts:
        shutil.make_archive(str(folder / f"{split}2017"), "zip", whole, f"{split}2017")
    shutil.make_archive(str(folder / "annotations_trainval2017"), "zip", whole, "annotations")
    shutil.rmtree(whole)
    return folder


@pytest.fixture
def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small archives here are not the authors'."""
    recipes = {
        name: replace(recipe, archives=tuple(replace(a, md5=None) for a in recipe.archives))
        for name, recipe in RECIPES.items()
    }
    monkeypatch.setattr(module, "RECIPES", recipes)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("parent", ["", "coco"])
@pytest.mark.parametrize("link", [False, True])
def test_coco_from_a_folder(parent: str, link: bool, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source" / parent, {"train": 3, "val": 2})
    root = tmp_path / "root"
    counts = prepare("coco2017", root, source=tmp_path / "source", link=link)
    assert [(c.name, c.images, c.annotations) for c in counts] == [
        ("coco_2017_train", 3, 1),
        ("coco_2017_val", 2, 1),
    ]
    assert "a part: the full dataset has 5000 images" in str(counts[1])
    assert (root / "coco" / "val2017").is_symlink() == link
    assert {f"coco/{name}" for name in listing(source)} == listing(root) or link
    assert not list(root.rglob("*.part"))


@pytest.mark.usefixtures("empty_catalogs", "without_checksums")
def test_what_is_prepared_is_where_detectron2_looks(tmp_path: Path) -> None:
    source = write_coco_archives(tmp_path / "source", {"train": 3, "val": 2})
    prepare("coco2017", tmp_path / "root", source=source)
    register_all_coco(str(tmp_path / "root"))
    dicts = DatasetCatalog.get("coco_2017_val")
    assert len(dicts) == 2
    assert all(Path(item["file_name"]).is_file() for item in dicts)


@pytest.mark.usefixtures("without_checksums")
def test_coco_by_download_survives_a_break_and_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_coco_archives(tmp_path / "source", {"train": 3, "val": 2, "test": 1})
    names = ("annotations_trainval2017.zip", "val2017.zip")
    files = Files({f"/{name}": (source / name).read_bytes() for name in names}, break_after=[300])
    root = tmp_path / "root"
    with serve(files) as url:
        recipe = module.RECIPES["coco2017"]
        archives = tuple(replace(a, url=f"{url}/{a.file_name}") for a in recipe.archives)
        recipes = {"coco2017": replace(recipe, archives=archives)}
        monkeypatch.setattr(module, "RECIPES", recipes)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        (count,) = prepare("coco2017", root, splits=["val"])
        assert (count.name, count.images) == ("coco_2017_val", 2)
        assert not (root / "downloads").exists()
        requests = len(files.requests)
        prepare("coco2017", root, splits=["val"])
        assert len(files.requests) == requests, "nothing was missing"
        with pytest.raises(UsageError, match=r"train2017\.zip: HTTP Error 404"):
            prepare("coco2017", root)
    assert len(verify("coco2017", root, ["val"])) == 1


@pytest.mark.usefixtures("without_checksums")
def test_an_archive_that_is_not_one_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files({"/PennFudanPed.zip": b"<html>please log in</html>"})
    with serve(files) as url:
        recipe = module.RECIPES["penn_fudan"]
        archive = replace(recipe.archives[0], url=f"{url}/PennFudanPed.zip")
        recipes = {"penn_fudan": replace(recipe, archives=(archive,))}
        monkeypatch.setattr(module, "RECIPES", recipes)
        with pytest.raises(UsageError, match=r"PennFudanPed\.zip cannot be unpacked"):
            prepare("penn_fudan", tmp_path)
    assert listing(tmp_path) == set()


def test_local_archives_are_checked(tmp_path: Path) -> None:
    source = write_coco_archives(tmp_path / "source", {"train": 1, "val": 1})
    with pytest.raises(UsageError, match=r"\.zip has MD5 .*damaged"):
        prepare("coco2017", tmp_path / "root", source=source)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("where", ["data", "data/PennFudanPed"])
def test_penn_fudan(where: str, link: bool, tmp_path: Path) -> None:
    if where == "data" and not link:
        pytest.skip("copied in the other case")
    counts = prepare("penn_fudan", tmp_path, source=shared_path(where), link=link)
    assert [str(count) for count in counts] == [
        "penn_fudan_train: 128 images, 312 objects",
        "penn_fudan_val: 42 images, 111 objects",
    ]
    assert (tmp_path / "PennFudanPed").is_symlink() == link
    mode = (tmp_path / "PennFudanPed" / "PNGImages").stat().st_mode
    assert link or mode & 0o200, "a copy of a read-only folder can be removed"


@pytest.mark.parametrize("where", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_from_a_folder(where: str, tmp_path: Path) -> None:
    source = shared_path("data/voc_small") / where
    counts = prepare("voc", tmp_path, source=source, link=True)
    assert [(c.name, c.images, c.annotations) for c in counts] == [
        ("voc_2012_train_coco", 67, 181),
        ("voc_2012_val_coco", 33, 92),
        ("voc_2012_trainval_coco", 100, 273),
    ]
    with pytest.raises(UsageError, match=r"neither an archive of voc .*VOCtest.*VOC2007"):
        prepare("voc", tmp_path, source=source, splits=["2007"])


@pytest.mark.usefixtures("without_checksums")
def test_voc_2007_is_merged_from_two_archives(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lists = {
        "VOCtrainval_06-Nov-2007.tar": {"train": ["000001"], "val": ["000002"]},
        "VOCtest_06-Nov-2007.tar": {"test": ["000003"]},
    }
    lists["VOCtrainval_06-Nov-2007.tar"]["trainval"] = ["000001", "000002"]
    for archive, splits in lists.items():
        folder = source / archive / "VOCdevkit" / "VOC2007"
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for split, names in splits.items():
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
            for name in names:
                xml = "<annotation><size><width>8</width><height>6</height></size></annotation>"
                (folder / "Annotations" / f"{name}.xml").write_text(xml)
                Image.new("RGB", (8, 6)).save(folder / "JPEGImages" / f"{name}.jpg")
        packed = tmp_path / archive
        with tarfile.open(packed, "w") as tar:
            tar.add(folder.parent, "VOCdevkit")
        shutil.rmtree(source / archive)
        shutil.move(packed, source / archive)
    counts = prepare("voc", tmp_path / "root", source=source)
    assert {c.name: c.images for c in counts} == {
        "voc_2007_train_coco": 1,
        "voc_2007_val_coco": 1,
        "voc_2007_trainval_coco": 2,
        "voc_2007_test_coco": 1,
    }
    assert len(os.listdir(tmp_path / "root" / "VOC2007" / "JPEGImages")) == 3


def test_incomplete_data_is_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source", {"val": 3})
    (source / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(UsageError, match=r"coco_2017_val: 1 of 3 .* 000000000002\.jpg"):
        prepare("coco2017", tmp_path / "root", source=source)
    with pytest.raises(UsageError, match="no split"):
        prepare("coco2017", tmp_path / "root", splits=["minival"])
    target = tmp_path / "other" / "coco" / "val2017"
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"val2017 is a link, .* remove the link"):
        prepare("coco2017", tmp_path / "other", source=source)
    with pytest.raises(UsageError, match="in the way"):
        prepare("coco2017", tmp_path / "other", source=source, link=True)


@pytest.mark.usefixtures("without_checksums")
def test_a_kill_while_merging_is_made_good_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_coco(tmp_path / "source", {"val": 2})
    (tmp_path / "root" / "coco" / "annotations").mkdir(parents=True)  # so it is merged into
    (source / "annotations" / "z_comes_after.json").write_text("{}")
    replace_file = os.replace

    def die_at_the_second(a: Path, b: Path) -> None:
        if "z_comes" in str(a):
            raise KeyboardInterrupt
        replace_file(a, b)

    monkeypatch.setattr(os, "replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare("coco2017", tmp_path / "root", source=source)
    annotations = tmp_path / "root" / "coco" / "annotations"
    assert os.listdir(annotations) == [], "what marks it as complete is moved last"
    monkeypatch.undo()
    prepare("coco2017", tmp_path / "root", source=source)
    assert listing(annotations) == {"instances_val2017.json", "z_comes_after.json"}

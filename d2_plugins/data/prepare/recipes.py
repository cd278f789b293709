"""Addresses of the datasets on the internet, and their layout on disk.

The numbers of images are the authors'. The MD5 sums of VOC are those in torchvision, those of COCO
are in wide use; without a reliable sum, only the number of images is checked.
"""

from dataclasses import dataclass

__all__ = ["RECIPES", "Archive", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file to download.

    Attributes:
        url: address at the authors' site.
        md5: hexadecimal checksum, if known.
        markers: for each split that needs the archive, a path in it, relative to the recipe's
            home, that exists on disk if and only if the archive is installed completely.
    """

    url: str
    md5: str | None
    markers: dict[str, str]

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Files and splits of one dataset.

    Attributes:
        home: folder under the dataset root for the archives' folders; "" is the root itself.
        archives: archives of all splits.
        default_splits: splits that are prepared by default.
        registered: for each split, its names in detectron2's catalogs with numbers of images.
    """

    home: str
    archives: tuple[Archive, ...]
    default_splits: tuple[str, ...]
    registered: dict[str, dict[str, int]]

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits, in order."""
        return tuple(self.registered)

    def markers(self, split: str) -> list[str]:
        """List the paths, relative to :attr:`home`, that make up a split."""
        return [a.markers[split] for a in self.archives if split in a.markers]


_COCO = "http://images.cocodataset.org"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_PENN_FUDAN = "https://www.cis.upenn.edu/~jshi/ped_html"

_COCO2017 = Recipe(
    home="coco",
    archives=(
        Archive(
            url=f"{_COCO}/annotations/annotations_trainval2017.zip",
            md5="f4bbac642086de4f52a3fdda2de5fa2c",
            markers={
                "train": "annotations/instances_train2017.json",
                "val": "annotations/instances_val2017.json",
                "panoptic-train": "annotations/instances_train2017.json",
                "panoptic-val": "annotations/instances_val2017.json",
            },
        ),
        # The JSON files, and one archive of pictures for each inside this archive.
        Archive(
            url=f"{_COCO}/annotations/panoptic_annotations_trainval2017.zip",
            md5=None,
            markers={
                "panoptic-train": "annotations/panoptic_train2017.json",
                "panoptic-val": "annotations/panoptic_val2017.json",
            },
        ),
        Archive(
            url=f"{_COCO}/zips/val2017.zip",
            md5="442b8da7639aecaf257c1dceb8ba8c80",
            markers={"val": "val2017", "panoptic-val": "val2017"},
        ),
        Archive(
            url=f"{_COCO}/zips/train2017.zip",
            md5="cced6f7f71b7629ddf16f17bbcfab6b2",
            markers={"train": "train2017", "panoptic-train": "train2017"},
        ),
        Archive(
            url=f"{_COCO}/annotations/image_info_test2017.zip",
            md5=None,
            markers={"test": "annotations/image_info_test2017.json"},
        ),
        Archive(
            url=f"{_COCO}/zips/test2017.zip",
            md5="77ad2c53ac5d0aea611d422c0938fb35",
            markers={"test": "test2017"},
        ),
    ),
    default_splits=("train", "val"),
    registered={
        "train": {"coco_2017_train": 118287},
        "val": {"coco_2017_val": 5000},
        "test": {"coco_2017_test": 40670},
        "panoptic-train": {"coco_2017_train_panoptic_separated": 118287},
        "panoptic-val": {"coco_2017_val_panoptic_separated": 5000},
    },
)

_VOC_BOTH = Recipe(
    home="",
    archives=(
        Archive(
            url=f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
            md5="c52e279531787c972589f7e41ab4ae64",
            markers={"2007": "VOC2007/ImageSets/Main/trainval.txt"},
        ),
        Archive(
            url=f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
            md5="b6e924de25625d8de591ea690078ad9f",
            markers={"2007-test": "VOC2007/ImageSets/Main/test.txt"},
        ),
        Archive(
            url=f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
            md5="6cd6e144f989b92b3379bac3b3de84fd",
            markers={"2012": "VOC2012/ImageSets/Main/trainval.txt"},
        ),
    ),
    default_splits=("2007", "2007-test", "2012"),
    registered={
        "2007": {
            "voc_2007_train_coco": 2501,
            "voc_2007_val_coco": 2510,
            "voc_2007_trainval_coco": 5011,
        },
        "2007-test": {"voc_2007_test_coco": 4952},
        "2012": {
            "voc_2012_train_coco": 5717,
            "voc_2012_val_coco": 5823,
            "voc_2012_trainval_coco": 11540,
        },
    },
)

_PENN_FUDAN_ALL = Recipe(
    home="",
    archives=(
        Archive(
            url=f"{_PENN_FUDAN}/PennFudanPed.zip",
            md5=None,
            markers={"all": "PennFudanPed/PedMasks"},
        ),
    ),
    default_splits=("all",),
    registered={"all": {"penn_fudan_train": 128, "penn_fudan_val": 42}},
)

_BCCD_ALL = Recipe(
    home="",
    archives=(
        Archive(
            url="https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip",
            md5=None,
            markers={"all": "BCCD/ImageSets/Main/trainval.txt"},
        ),
    ),
    default_splits=("all",),
    registered={"all": {"bccd_train": 205, "bccd_val": 87, "bccd_test": 72}},
)

RECIPES: dict[str, Recipe] = {
    "coco2017": _COCO2017,
    "voc": _VOC_BOTH,
    "penn_fudan": _PENN_FUDAN_ALL,
    "bccd": _BCCD_ALL,
}

"""The formats that datasets are written in, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convnext.data.annotations.coco_file import CocoContent
from convnext.data.convert.write.coco import coco_files
from convnext.data.convert.write.common import OutgoingDataset, TextFile, images_of
from convnext.data.convert.write.cvat import cvat_files
from convnext.data.convert.write.label_studio import label_studio_files
from convnext.data.convert.write.labelme import labelme_files
from convnext.data.convert.write.voc import voc_files
from convnext.data.convert.write.yolo import yolo_files
from convnext.errors import UsageError


@dataclass(frozen=True)
class DatasetFormat:
    """A format of datasets: one file, or a folder with one file per image and links to the images."""

    title: str
    files: Callable[[OutgoingDataset], Iterator[TextFile]]
    ending: str | None = None  # of the one file
    annotations: str = ""  # the folder of the files per image, below the output folder
    images: str = ""  # the folder of links to the images there
    per_image: str = ""  # the ending of a file per image

    def check(self, output: Path) -> None:
        """Raise UsageError if an output's name is not one for the format."""
        if self.ending is not None and output.suffix.lower() != self.ending:
            raise UsageError(f"{output}: {self.title} is written to a {self.ending} file")
        if self.ending is None and (
            output.is_file() or output.suffix.lower() in (".json", ".jsonl", ".xml", ".yaml", ".yml", ".txt", ".csv")
        ):
            raise UsageError(f"{output}: {self.title} is written to a folder, with {self.annotations}/ and {self.images}/ in it")


FORMATS = {
    "coco-dataset": DatasetFormat("a COCO dataset", coco_files, ".json"),
    "cvat": DatasetFormat("CVAT's XML", cvat_files, ".xml"),
    "label-studio": DatasetFormat("Label Studio's JSON", label_studio_files, ".json"),
    "labelme": DatasetFormat("LabelMe's JSON", labelme_files, annotations="labels", images="images", per_image=".json"),
    "voc": DatasetFormat("Pascal VOC's XML", voc_files, annotations="Annotations", images="JPEGImages", per_image=".xml"),
    "yolo": DatasetFormat("YOLO's text", yolo_files, annotations="labels", images="images", per_image=".txt"),
}


def outgoing(content: CocoContent, folder: Path, mistakes: list[str]) -> OutgoingDataset:
    """Return the valid content of a COCO file as a dataset to write; for `mistakes` see `images_of`."""
    images = list(images_of(content, folder, mistakes))
    categories = {category["name"]: category["id"] for category in sorted(content["categories"], key=lambda one: one["id"])}
    is_predicted = any("score" in annotation for annotation in content["annotations"])
    return OutgoingDataset(lambda: images, categories, is_predicted)

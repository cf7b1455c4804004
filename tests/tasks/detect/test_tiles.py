"""Objects that are found in overlapping tiles of an image."""

import json

import pytest
import torch
from command import run
from helpers import sample_image
from tasks.detect.test_task import write_coco
from tiny_models import detector, segmenter
from torchvision.ops import box_iou

import convnext
from convnext.data.run_lengths import decode
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.errors import UsageError
from convnext.models.detection.postprocess import AS_PUBLISHED, Selection, paste_masks
from convnext.tasks.detect import tiles

RED, BLUE = (200, 30, 20), (20, 40, 220)


class FindsRectangles:
    """A network that finds the red and the blue rectangles of an image, each with a full mask and its share of the pixels as score."""

    def __init__(self):
        self.shapes = []

    def predict(self, images, output_sizes, threshold, masks, selection=AS_PUBLISHED):
        self.shapes.append([tuple(image.shape[1:]) for image in images])
        return [self.find(image, size) for image, size in zip(images, output_sizes, strict=True)]

    def find(self, image, size):
        boxes, labels = [], []
        for label, channel in ((0, 0), (1, 2)):
            bright = image[channel] > 0.5
            for left, right in runs(bright.any(0)):
                for top, bottom in runs(bright[:, left:right].any(1)):
                    boxes.append([left, top, right, bottom])
                    labels.append(label)
        scale = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]] * 2)
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * scale
        scores = torch.linspace(0.9, 0.5, len(boxes)) if len(boxes) else torch.zeros(0)
        return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "scores": scores, "masks": torch.ones(len(boxes), 28, 28)}


def runs(values):
    edges = torch.diff(values.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def scene(objects, height=300, width=400):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for (left, top, right, bottom), colour in objects:
        image[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return image


def found_in(objects, tile=100, overlap=0.3, short=100, **selection):
    how = DetectPreprocessing(short, short, (0.0,) * 3, (1.0,) * 3, tile=tile, overlap=overlap)
    network = FindsRectangles()
    (one,) = tiles.detect(network, [scene(objects)], [(300, 400)], how, Selection(**selection))
    return one, network


def test_each_object_is_found_once_wherever_borders_cut_it():
    # 20 pixels: less than the overlap of 30, so each is whole in a tile. At every offset from the borders of tiles.
    objects = [((30 + 41 * i, 25 + 61 * j, 50 + 41 * i, 45 + 61 * j), RED if (i + j) % 2 else BLUE) for i in range(9) for j in range(4)]
    one, network = found_in(objects)
    assert len(one["scores"]) == len(objects)
    best, which = box_iou(torch.tensor([box for box, _ in objects], dtype=torch.float32), one["boxes"]).max(1)
    assert best.min() > 0.6  # the whole image is a quarter of the size
    assert one["labels"][which].tolist() == [int(colour == BLUE) for _, colour in objects]
    assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)
    assert network.shapes[0] == [(75, 100)]  # the whole image
    assert {shape for batch in network.shapes[1:] for shape in batch} == {(100, 100)}
    assert max(map(len, network.shapes)) == 4


def test_an_object_larger_than_the_overlap_is_that_of_the_whole_image():
    one, _ = found_in([((40, 48, 260, 252), RED), ((320, 100, 340, 120), BLUE)])
    assert one["labels"].tolist() == [0, 1]
    torch.testing.assert_close(one["boxes"], torch.tensor([[40.0, 48, 260, 252], [320, 100, 340, 120]]), atol=4, rtol=0)


def test_a_part_drops_only_objects_of_its_class_unless_told_otherwise():
    found = {"boxes": torch.tensor([[0.0, 0, 100, 100], [60, 0, 100, 40], [60, 50, 100, 90], [10, 10, 30, 30]])}
    found |= {"labels": torch.tensor([0, 0, 1, 0]), "scores": torch.tensor([0.4, 0.9, 0.8, 0.7])}
    is_cut = torch.tensor([False, True, True, False])
    assert tiles._merged(found, is_cut, AS_PUBLISHED)["scores"].tolist() == pytest.approx([0.8, 0.7, 0.4])
    assert tiles._merged(found, is_cut, Selection(class_agnostic=True))["scores"].tolist() == pytest.approx([0.7, 0.4])


def test_masks_are_placed_into_the_frame_of_the_image():
    one, _ = found_in([((130, 200, 150, 230), RED)])
    assert one["masks"].shape == (1, 28, 28)
    pasted = paste_masks(one["masks"], one["boxes"], (300, 400))[0]
    assert pasted[202:228, 132:148].all()
    assert int(pasted.sum()) <= 22 * 32


def test_an_image_that_fits_into_a_tile_is_predicted_as_without(tmp_path):
    predictor, image = convnext.load(detector(tmp_path)[0], device="cpu"), sample_image(size=(80, 60))
    whole, same, fine = predictor(image), predictor.tiled(100)(image), predictor.tiled(64, 0.5)(image)
    assert torch.equal(predictor.tiled(64).features(image), predictor.features(image))
    assert same.to_json() == whole.to_json()
    assert len(fine.scores) > len(whole.scores) == 100
    assert {tuple(mask["size"]) for mask in fine.masks} == {(60, 80)}
    assert decode(fine.masks[-1]).shape == (60, 80)
    assert float(fine.boxes[:, 2].max()) <= 80


def test_commands_take_tiles(tmp_path):
    weights = detector(tmp_path)[0]
    given = ("--tile", "64", "--tile-overlap", "0.5", "--output", tmp_path / "found.jsonl")
    sample_image(size=(80, 60)).save(tmp_path / "0.png")
    run("predict", weights, tmp_path / "0.png", *given)
    row = json.loads((tmp_path / "found.jsonl").read_text())
    assert row["objects"] == convnext.load(weights, device="cpu").tiled(64, 0.5)(tmp_path / "0.png").to_json()["objects"]
    assert "--tile 64" in run("predict", weights, tmp_path / "0.png", *given[4:], code=2).stderr
    assert "--tile-overlap (tile_overlap=) is for --tile" in run("predict", weights, tmp_path / "0.png", *given[2:4], code=2).stderr
    assert "from 64 to" in run("predict", weights, tmp_path / "0.png", "--tile", "2", code=2).stderr
    with pytest.raises(UsageError, match="segmenter has the windows of its recipe"):
        convnext.load(segmenter(tmp_path)[0]).tiled(64)


def test_evaluation_takes_tiles(tmp_path):
    folder, weights = write_coco(tmp_path, "val", 2), detector(tmp_path)[0]
    annotations = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(("ant", "bee", "wasp"))]
    for one in content["annotations"]:
        one["category_id"] = 3 * (one["id"] % 3) + 1
    annotations.write_text(json.dumps(content))
    found = convnext.evaluate(weights, folder, tile=48 + 16, device="cpu", workers=0)
    usual = convnext.evaluate(weights, folder, device="cpu", workers=0)
    assert found.result.metrics == usual.result.metrics  # of images that fit into a tile

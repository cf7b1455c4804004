import base64
import io

import numpy as np
import pytest
import torch
from deep_files import png16, tiff
from helpers import sample_image
from PIL import Image, ImageOps
from pycocotools import mask as coco
from tiny_models import CLASSES, classifier, create, detector, segmenter, write

import convnext
from convnext import tasks
from convnext.data.images import CorruptImageError
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import UsageError
from convnext.models.segmentation import inference

SIZES = [(90, 70), (48, 40), (90, 70)]


def test_predictor_takes_files_bytes_and_images_alone_or_in_lists(tmp_path):
    path, model, how = classifier(tmp_path)
    image = sample_image(size=(90, 70))
    image.save(tmp_path / "photo.png")
    predictor = convnext.load(path, device="cpu")
    wanted = model(how.transform()(image)[None]).softmax(1)[0]
    content = (tmp_path / "photo.png").read_bytes()
    for one in (image, tmp_path / "photo.png", str(tmp_path / "photo.png"), content):
        assert torch.allclose(predictor(one).probabilities, wanted, atol=1e-6)
    both = predictor([image, content])
    assert all(torch.allclose(p.probabilities, wanted, atol=1e-6) for p in both)
    assert len(both) == 2
    assert predictor([]) == []
    top = predictor(image).top(5)
    assert [name for name, _ in top] == [predictor.classes[i] for i in wanted.argsort(descending=True)]
    assert sum(p for _, p in top) == pytest.approx(1, abs=1e-5)
    assert predictor(image).to_json(2) == {"top": [{"class": name, "probability": p} for name, p in top[:2]]}


def _files():
    """Files that a decoder alone does not make right, by name, as bytes."""
    image, exif, wide = sample_image(size=(90, 70)), Image.Exif(), np.linspace(0, 4095, 90 * 70).reshape(70, 90)
    exif[0x0112] = 6
    cut = image.convert("RGBA")
    cut.putalpha(sample_image(3, (90, 70)).convert("L"))
    grey = Image.fromarray(wide.astype(np.uint16))
    made = {
        "turned.jpg": (image, "JPEG", {"exif": exif}),
        "turned.png": (image, "PNG", {"exif": exif}),
        "turned.tif": (image, "TIFF", {"exif": exif}),
        "turned.webp": (image, "WEBP", {"exif": exif}),
        "turned16.png": (grey, "PNG", {"exif": exif}),
        "progressive.jpg": (image, "JPEG", {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
        "grey.png": (image.convert("L"), "PNG", {}),
        "black.png": (image.convert("1"), "PNG", {}),
        "clear.png": (cut, "PNG", {}),
        "clear_grey.png": (cut.convert("LA"), "PNG", {}),
        "palette.gif": (image.quantize(9), "GIF", {}),
        "clear_palette.png": (image.quantize(9), "PNG", {"transparency": 3}),
        "sixteen.tif": (grey, "TIFF", {}),
        "float.tif": (Image.fromarray((wide / 4095).astype(np.float32)), "TIFF", {}),
        "integers.tif": (Image.fromarray(wide.astype(np.int32)), "TIFF", {}),
    }
    for name, (one, kind, options) in made.items():
        buffer = io.BytesIO()
        one.save(buffer, kind, **options)
        yield name, buffer.getvalue()
    yield "colour16.png", png16(np.stack([wide] * 3, -1).astype(np.uint16))
    yield "colour16.tif", tiff(np.stack([wide] * 3, -1).astype(np.uint16))


def _loaded(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


WAYS = {
    "str": lambda path, content: str(path),
    "bytes": lambda path, content: content,
    "bytearray": lambda path, content: bytearray(content),
    "memoryview": lambda path, content: memoryview(content),
    "PIL": lambda path, content: Image.open(path),
    "PIL from memory": lambda path, content: Image.open(io.BytesIO(content)),
    "PIL, loaded": lambda path, content: _loaded(content),
    "PIL, a copy": lambda path, content: Image.open(path).copy(),
    "PIL, turned by its EXIF": lambda path, content: ImageOps.exif_transpose(Image.open(path)),
    "PIL, turned twice": lambda path, content: ImageOps.exif_transpose(ImageOps.exif_transpose(Image.open(path))),
    "array": lambda path, content: np.asarray(ImageOps.exif_transpose(Image.open(path))),
}


@pytest.mark.parametrize("scale", [None, 4095.0])
def test_an_image_is_the_same_whatever_it_comes_as(tmp_path, scale):
    how = ClassifyPreprocessing(image_size=32, range=scale)
    path, _, _ = write(tmp_path / "w.safetensors", "classify", how, create("convnext_tiny"))
    predictor, everything, wanted = convnext.load(path, device="cpu"), [], []
    for name, content in _files():
        file = tmp_path / name
        file.write_bytes(content)
        expected = predictor(file).probabilities
        for way, make in WAYS.items():
            if way == "array" and name.startswith(("clear", "palette", "cmyk")):
                continue  # the array holds what its mode says: indices of a palette, ink
            if name.startswith("colour16") and way not in ("str", "bytes", "bytearray", "memoryview", "PIL", "PIL from memory"):
                continue  # Pillow keeps 8 bits of these once they are loaded
            given = make(file, content)
            found = predictor(given).probabilities
            assert torch.equal(found, expected), (name, way)
            if way == "PIL":
                assert torch.equal(predictor(given).probabilities, expected), (name, way, "a second time")
                assert torch.equal(predictor.features(given), predictor.features(file)), (name, way)
            everything.append(given)
            wanted.append(expected)
    assert all(torch.allclose(one.probabilities, other, atol=1e-6) for one, other in zip(predictor(everything), wanted, strict=True))
    assert len({tuple(probabilities.tolist()) for probabilities in wanted}) > 10  # the files differ


def test_the_callers_image_is_not_changed(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    for name, content in _files():
        image = Image.open(io.BytesIO(content))
        image.load()
        before = image.size, image.mode, image.tobytes(), dict(image.info), dict(image.getexif())
        predictor(image)
        assert (image.size, image.mode, image.tobytes(), dict(image.info), dict(image.getexif())) == before, name


@pytest.mark.parametrize("make", [detector, segmenter])
def test_detectors_and_segmenters_take_the_same(tmp_path, make):
    predictor, files = convnext.load(make(tmp_path)[0], device="cpu"), dict(_files())
    for name in ("turned.jpg", "clear.png", "turned16.png", "float.tif"):
        expected, *others = [predictor(one) for one in (files[name], Image.open(io.BytesIO(files[name])))]
        other = others[0]
        assert expected.to_json() == other.to_json()
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(files[name])))
        if make is segmenter:
            assert expected.mask.shape == upright.size[::-1]


def test_an_array_is_one_image_and_a_tensor_is_refused(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    array = np.asarray(sample_image())
    assert len(predictor([array, array])) == 2
    with pytest.raises(UsageError, match=r"give several images as a list, list\(array\)"):
        predictor(np.stack([array, array]))
    for call in (predictor, predictor.features):
        with pytest.raises(UsageError, match="Tensor is not an image: give it as"):
            call(torch.zeros(3, 40, 48))
    with pytest.raises(UsageError, match="dict is not an image"):
        predictor([{}])


def test_what_cannot_be_read_raises_with_its_name(tmp_path):
    (tmp_path / "bad.jpg").write_text("no")
    with pytest.raises(CorruptImageError, match=r"bad\.jpg"):
        convnext.load(classifier(tmp_path)[0], device="cpu")(tmp_path / "bad.jpg")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_a_detector_gives_boxes_and_masks_in_the_pixels_of_each_image(tmp_path):
    path, model, how = detector(tmp_path)
    images = [sample_image(i, size) for i, size in enumerate(SIZES)]
    found = convnext.load(path, device="cpu")(images)
    for one, image in zip(found, images, strict=True):
        (wanted,) = model.predict([how.transform()(image)], [(image.height, image.width)])
        objects = one.to_json()["objects"]
        assert len(objects) == len(one.boxes) == len(wanted["scores"])
        # A batch differs from a single image by rounding, by which objects of nearly one score change places, or suppress each other.
        distance = (one.boxes[:, None] - wanted["boxes"]).abs().amax(2) + 1e3 * (one.labels[:, None] != wanted["labels"])
        same = [(i, int(row.argmin())) for i, row in enumerate(distance) if row.min() < 1e-3]
        assert len(same) >= 0.9 * len(objects)
        for i, j in same:
            assert objects[i]["class"] == CLASSES[wanted["labels"][j]]
            assert objects[i]["score"] == pytest.approx(float(wanted["scores"][j]), abs=1e-4)
            assert (coco.decode(objects[i]["mask"]) != wanted["masks"][j][0].numpy()).mean() < 0.01
        assert len(one.to_json(3)["objects"]) == len(one.rows(3)) == 3
        assert one.to_text().count("%") == int((one.scores >= 0.5).sum())


@pytest.mark.parametrize("test", [{}, {"scale": (128, 32)}, {"window": 32, "stride": 24}])
def test_a_segmenter_gives_masks_of_each_images_size_by_its_own_test(tmp_path, test):
    path, model, how = segmenter(tmp_path, **test)
    images = [sample_image(i, size) for i, size in enumerate(SIZES)]
    mode = inference.mode_of(how)
    for one, image in zip(convnext.load(path, device="cpu")(images), images, strict=True):
        wanted = inference.predict(model, how.transform()(image), mode)
        assert (one.mask != wanted).float().mean() < 0.01
        values = one.to_json()
        assert values["size"] == [image.height, image.width]
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(values["mask"]))))
        assert np.array_equal(mask, one.mask.numpy())
        counts = np.bincount(mask.ravel(), minlength=len(CLASSES))
        order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]  # the largest first
        assert values["classes"] == [{"class": CLASSES[i], "share": counts[i] / mask.size} for i in order]
        assert len(values["classes"]) > 1


@pytest.mark.parametrize("make", [classifier, detector, segmenter])
def test_embeddings_do_not_depend_on_the_batch_and_drawings_keep_the_image_unless_something_is_drawn(tmp_path, make):
    predictor = convnext.load(make(tmp_path)[0], device="cpu")
    images = [sample_image(i, size) for i, size in enumerate(SIZES)]
    found = predictor.features(images)
    assert found.shape == (3, 32)
    alone = torch.cat([predictor.features(one) for one in images])
    assert torch.allclose(found, alone, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-2)
    sheet = predictor(images[0]).draw(images[0])
    assert sheet.mode == "RGB"
    assert sheet.size != images[0].size  # enlarged, or with a legend


def test_a_classifiers_embedding_is_what_its_head_sees(tmp_path):
    path, model, how = classifier(tmp_path)
    embedding = convnext.load(path, device="cpu").features(sample_image())
    assert torch.allclose(model.head(embedding), model(how.transform()(sample_image())[None]), atol=1e-5)
    predictor = convnext.load(path, device="cpu")
    predictor.model = torch.nn.Flatten()  # as an exported network has a forward() and no more
    with pytest.raises(UsageError, match="no embeddings"):
        predictor.features(sample_image())


def test_classes_that_weights_do_not_name_are_named_where_they_are_known():
    assert tasks.get("classify").class_names(1000)[0].startswith("tench")
    for count in (11821, 21841):  # the heads of ImageNet-12K and -22K
        names = tasks.get("classify").class_names(count)
        assert len(names) == count
        assert "benthos" in names
    assert tasks.get("detect").class_names(80)[79] == "toothbrush"
    assert tasks.get("segment").class_names(2) == ["class 0", "class 1"]

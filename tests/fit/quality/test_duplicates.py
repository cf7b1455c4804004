"""Near duplicates: copies that were changed in each way are found, and nothing else is."""

import io

import numpy as np
import pytest
from fit.quality.embedded import Images, embedded
from helpers import sample_image, shared
from PIL import Image, ImageEnhance, ImageOps

from convnext.data.images import read_image
from convnext.fit.quality.duplicates import DataPart, Place, find_duplicates


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def cropped(image, left=0.1, top=0.15, width=0.8, height=0.8):
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round((left + width) * w), round((top + height) * h)))


def scaled(image, factor):
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


CHANGES = {
    "identical": lambda image: image.copy(),
    "re-encoded": lambda image: jpeg(image, 30),
    "scaled": lambda image: jpeg(scaled(image, 0.3), 90),
    "cropped": lambda image: jpeg(cropped(image), 90),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image), 90),
    "brightness": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.8), 90),
    "mirrored, cropped, scaled": lambda image: jpeg(ImageOps.mirror(scaled(cropped(image), 0.5)), 80),
}


@pytest.fixture(scope="module")
def photos():
    folder = shared("data/hymenoptera/val")
    return [read_image(path) for path in sorted(folder.rglob("*.jpg"))[:40]]


def found_in(*parts):
    sources = [Images(images) for images in parts]
    return find_duplicates([DataPart(name, source, embedded(source)) for name, source in zip(("train", "val"), sources, strict=False)])


@pytest.mark.parametrize("relation", CHANGES)
def test_a_changed_copy_is_found_with_what_was_done_to_it(photos, relation):
    copies = [CHANGES[relation](image) for image in photos[:4]]
    found = found_in([*photos, *copies])
    assert {tuple(sorted((pair.first.index, pair.second.index))) for pair in found.pairs} == {(i, 40 + i) for i in range(4)}
    assert {pair.relation for pair in found.pairs} == {relation}
    assert [pair.group for pair in found.pairs] == [0, 1, 2, 3]
    assert all(0.93 < pair.similarity <= 1 for pair in found.pairs)
    assert found.similar == []


def test_a_copy_whose_lights_were_cut_is_a_duplicate(photos):
    """Where a copy is white, it says nothing of where it lies in the original."""
    bright = ImageEnhance.Contrast(ImageEnhance.Brightness(photos[2]).enhance(1.25)).enhance(1.15)
    assert (np.asarray(bright.convert("L")) > 250).mean() > 0.02
    (pair,) = found_in([*photos, jpeg(bright, 90)]).pairs
    assert (pair.first.index, pair.second.index, pair.relation) == (2, 40, "brightness")


def test_different_photographs_of_one_class_are_no_duplicates(photos):
    found = found_in(photos)
    assert (found.pairs, found.similar, found.too_small) == ([], [], 0)


def test_the_frames_of_a_film_are_similar_and_a_copy_among_them_is_a_duplicate():
    """The camera stands still before a street."""
    folder = shared("data/camvid/images/val")
    frames = [read_image(path) for path in sorted(folder.glob("*.jpg"))[:12]]
    found = found_in([*frames, jpeg(scaled(frames[5], 0.6), 80)])
    assert [(pair.first.index, pair.second.index, pair.relation) for pair in found.pairs] == [(5, 12, "scaled")]
    assert {pair.relation for pair in found.similar} <= {"similar"}


def test_copies_of_one_image_are_a_group_and_the_larger_comes_first(photos):
    small, large = scaled(photos[0], 0.4), photos[0]
    found = found_in([small, photos[1], large, jpeg(large, 60)])
    assert {pair.group for pair in found.pairs} == {0}
    assert {index for pair in found.pairs for index in (pair.first.index, pair.second.index)} == {0, 2, 3}
    assert {pair.first.index for pair in found.pairs if 0 in (pair.first.index, pair.second.index)} <= {2, 3}


def test_a_leak_names_both_parts(photos):
    found = found_in(photos[:20], [*photos[20:30], jpeg(photos[3], 50)])
    (pair,) = found.pairs
    assert {pair.first, pair.second} == {Place(0, 3), Place(1, 10)}


def test_a_leak_is_found_among_many_copies_in_its_own_part(photos):
    copies = [jpeg(photos[3], quality) for quality in (40, 50, 60, 70, 80)]
    found = found_in(photos[:20], [*photos[20:30], *copies])
    assert {index for pair in found.pairs for index in (pair.first, pair.second)} >= {Place(0, 3), *(Place(1, 10 + i) for i in range(5))}
    assert {pair.group for pair in found.pairs} == {0}


def test_positions_are_those_of_the_source(photos):
    """Images that could not be read have no features."""
    source = Images([*photos[:10], jpeg(photos[4], 50)])
    found = find_duplicates([DataPart("train", source, embedded(source, [2, 4, 5, 10]))])
    assert {(pair.first.index, pair.second.index) for pair in found.pairs} <= {(4, 10), (10, 4)}
    assert len(found.pairs) == 1


def test_tiny_images_are_duplicates_only_if_they_are_identical():
    digits = [sample_image(seed, (8, 8)) for seed in range(6)]
    found = found_in([*digits, digits[2].copy(), ImageOps.mirror(digits[3])])
    assert [(pair.first.index, pair.second.index, pair.relation) for pair in found.pairs] == [(2, 6, "identical")]
    assert found.too_small == 8


def test_blank_images_do_not_resemble_everything(photos):
    blank = [Image.new("RGB", (200, 150), (value,) * 3) for value in (0, 90, 255)]
    assert found_in([*photos[:8], *blank]).pairs == []


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_and_one_image_have_no_duplicates(count):
    source = Images([sample_image()] * count)
    features = embedded(Images([sample_image()]), [0])
    part = DataPart("train", source, type(features)(features.plain[:count], features.mirrored[:count], features.indices[:count]))
    assert find_duplicates([part]).pairs == []


def test_progress_counts_the_images(photos):
    calls = []
    source = Images(photos[:3])
    find_duplicates([DataPart("train", source, embedded(source))], lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_deep_images_are_compared_too():
    from convnext.data.deep import deep

    values = [np.asarray(sample_image(seed, (64, 48)), np.uint16).transpose(2, 0, 1) * 200 for seed in range(5)]
    images = [deep(one, "image") for one in [*values, values[1] // 2]]
    found = found_in(images)
    assert [(pair.first.index, pair.second.index) for pair in found.pairs] == [(1, 5)]

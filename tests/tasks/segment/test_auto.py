"""What a segmenter's recipe leaves to the data."""

import pytest
from source_files import mask_folder

from convnext import tasks
from convnext.recipe import load_recipe
from convnext.tasks.segment import auto


@pytest.mark.parametrize(("sides", "expected"), [([640, 480, 3000], 512), ([480, 470, 490], 480), ([40], 256), ([], 512)])
def test_images_are_neither_enlarged_much_nor_large(sides, expected):
    assert auto.size_for(sides) == expected


def test_the_small_recipe_needs_the_data_alone(tmp_path):
    mask_folder(tmp_path, size=(300, 200))
    task = tasks.get("segment")
    data = task.open(load_recipe("segment_small", {"data.train": str(tmp_path)}))
    assert data.recipe is not None
    assert data.recipe.segment.scale == (288, 288)
    remark = "from the training data: segment.scale=[288,288] (half of the images have a long side of at most 300 pixels)"
    assert remark in data.remarks
    assert task.preprocessing(data.recipe).scale == (288, 288)

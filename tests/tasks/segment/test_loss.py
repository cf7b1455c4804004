"""The losses of a segmenter, by formulas of their own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from source_files import mask_folder

from convnext import tasks
from convnext.errors import UsageError
from convnext.models.segmentation import upernet
from convnext.recipe import load_recipe
from convnext.tasks.segment.loss import pixel_counts, pixel_losses


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    masks = torch.randint(0, 4, (2, 5, 6))
    masks[:, 0] = 255
    return 3 * torch.randn(2, 4, 5, 6), masks


def test_weights_are_those_of_pytorch(pixels):
    weights = torch.tensor([0.5, 2.0, 1.5, 1.0])
    wanted = F.cross_entropy(*pixels, weight=weights, ignore_index=255, reduction="none")
    torch.testing.assert_close(pixel_losses(*pixels, weights, 0.0), wanted)
    assert not pixel_losses(*pixels, weights, 2.0)[:, 0].any()


def test_the_focal_factor_by_hand(pixels):
    logits, masks = (one[:, ..., 1:, :].double().numpy() for one in pixels)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = np.take_along_axis(p, masks.astype(int)[:, None], 1)[:, 0]
    assert pixel_losses(*pixels, None, 1.5).sum().item() == pytest.approx((-((1 - p) ** 1.5) * np.log(p)).sum(), rel=1e-5)


def test_dice_by_hand(pixels):
    logits, masks = pixels
    masks = masks.where(masks != 3, 0)  # a class that is not shown counts nothing
    p, kept = logits.double().softmax(1).numpy(), (masks != 255).numpy()
    found = []
    for c in range(3):
        y = (masks == c).numpy() & kept
        found.append(1 - 2 * p[:, c][y].sum() / (p[:, c][kept].sum() + y.sum()))
    assert upernet.dice_loss(logits, masks).item() == pytest.approx(np.mean(found), rel=1e-5)


def test_dice_of_perfect_and_of_ignored_masks():
    masks = torch.tensor([[[0, 1], [1, 0]]])
    assert upernet.dice_loss(50 * F.one_hot(masks, 2).permute(0, 3, 1, 2).float(), masks).item() == pytest.approx(0, abs=1e-6)
    assert upernet.dice_loss(torch.randn(1, 2, 2, 2), torch.full((1, 2, 2), 255)).item() == 0


class Outputs(torch.nn.Module):
    """Takes the place of a segmenter."""

    def forward(self, images, auxiliary):
        torch.manual_seed(2)
        return torch.randn(len(images), 2, 12, 10), torch.randn(len(images), 2, 3, 3)


def test_the_keys_of_a_recipe_reach_the_loss(tmp_path):
    mask_folder(tmp_path)
    task, data = tasks.get("segment"), {"data.train": str(tmp_path), "data.val": str(tmp_path), "data.image_size": 32}

    def losses(**train):
        recipe = load_recipe("segment_digits", data | {f"train.{key}": value for key, value in train.items()})
        opened = task.open(recipe)
        batch = task.collate([opened.train[0, i] for i in range(2)])
        return task.criterion(recipe, opened)(Outputs(), batch)

    plain = losses()
    assert plain.keys() == {"decode", "auxiliary"}
    assert losses(dice=0.5).keys() == {"decode", "auxiliary", "dice"}
    assert torch.equal(losses(dice=0.5)["decode"], plain["decode"])
    assert losses(focal_gamma=2)["decode"] < plain["decode"]
    assert losses(class_weights={"thing": 3})["decode"] != plain["decode"]
    counts = pixel_counts(task.open(load_recipe("segment_digits", data)).train.source)
    assert sum(counts) == 4 * 48 * 40
    with pytest.raises(UsageError, match="train.class_weights: the data have no class 'things'; did you mean 'thing'"):
        losses(class_weights={"things": 3})

import pytest
import torch
from helpers import randomise

import convnext
from convnext.errors import ConvnextError
from convnext.recipe import load_recipe
from convnext.tasks import classify
from convnext.training.state import new_state
from convnext.training.step import Stepper

DEVICE = torch.device("cpu")


class Small(classify.Trainer):
    """A trainer on a device with room for so many pictures: what a GPU raises beyond them, raised on the CPU."""

    def __init__(self, recipe, room):
        super().__init__(recipe, ["a", "b", "c"])
        self.room, self.seen = room, []

    def loss(self, model, batch):
        self.seen.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch)


def stepper(room, *overrides):
    recipe = load_recipe("digits", ["train.precision=float32", "train.ema=0", *overrides])
    model = randomise(convnext.create_model("roadmap_t_16_separate_downsampling", width=8, num_classes=3, drop_path=0.3))
    made = Stepper(new_state(model, recipe, DEVICE), Small(recipe, room), recipe, 24, DEVICE)
    made.fitted = False  # as on a GPU
    return made


def batch():
    generator = torch.Generator().manual_seed(0)
    return classify.Batch(torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 3, list(range(24)), [])


@pytest.mark.parametrize(("mixup", "expected"), [(0.0, [24, 12, 6, 6, 6, 6, 6]), (0.5, [24, 12, 6, 6, 6, 6, 6])])
def test_what_fits_is_found_and_the_step_is_the_same(mixup, expected):
    tight, roomy = stepper(6, f"augment.mixup={mixup}"), stepper(6, f"augment.mixup={mixup}", "train.device_batch_size=6")
    roomy.fitted = True
    losses = [made.step(batch(), 1e-3)[0] for made in (tight, roomy)]
    assert tight.trainer.seen == expected
    assert losses[0] == losses[1]
    pairs = zip(tight.state.model.parameters(), roomy.state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    tight.step(batch(), 1e-3)
    assert tight.trainer.seen[len(expected) :] == [6] * 4  # it is looked for once


def test_where_not_even_one_picture_fits_the_remedy_is_told():
    with pytest.raises(ConvnextError, match=r"too little memory for 1 pictures at a time.*grad_checkpointing"):
        stepper(0).step(batch(), 1e-3)
    made = stepper(1, "augment.mixup=0.5")
    with pytest.raises(ConvnextError, match="too little memory for 2 pictures"):  # mixup pairs them
        made.step(batch(), 1e-3)

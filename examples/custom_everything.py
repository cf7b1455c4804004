"""Your own network, dataset, augmentation, loss, metric and callback: `python examples/custom_everything.py runs/own`, ten seconds."""

import sys

import numpy as np
import torch
from torch import nn

import convnext


class Stripes(torch.utils.data.Dataset):
    classes = ("across", "down")

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rows = 128 + 20 * (np.arange(24) % 4 == 0)[:, None, None]  # every fourth is lighter
        image = np.random.default_rng([self.seed, index]).normal(rows, 60, (24, 24, 3)).clip(0, 255).astype(np.uint8)
        return (image.transpose(1, 0, 2), 1) if index % 2 else (image, 0)


class StripeNet(nn.Module):
    def __init__(self, num_classes=2, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 7, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def darker(image):
    return image * (0.5 + 0.5 * torch.rand(1))  # uint8 (3, H, W); seeded for each image


def focal(logits, labels):
    nll = nn.functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-nll)) ** 2 * nll).mean()  # Lin et al., 2017


def missed(logits, labels):
    return 100 * (logits[labels == 1].argmax(1) == 0).float().mean()


class GoodEnough(convnext.Callback):
    def on_evaluation(self, moment):
        if moment.best > 75:
            raise convnext.Stop("good enough")


if __name__ == "__main__":
    torch.manual_seed(0)  # of the network's first weights
    short = {"data.image_size": 24, "train.epochs": 15, "augment.rand_augment": None}
    own = {"model": StripeNet(), "train_data": Stripes(400, 0), "val_data": Stripes(100, 1), "transform": darker, "loss": focal}
    print(convnext.train("digits", short, output=sys.argv[1], resume=True, metrics=missed, callbacks=[GoodEnough()], **own).metrics)

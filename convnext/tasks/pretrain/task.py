"""Pre-training without labels. Images and files are those of classification; the networks are masked autoencoders."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from convnext.data import deep
from convnext.data.images import AS_RGB, Reading
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import Preprocessing, sides
from convnext.errors import UsageError
from convnext.models.registry import find, list_models
from convnext.recipe import BEST_METRICS, Recipe
from convnext.tasks.base import ClassIds, Criterion, Metric, Reporter, Task, TaskData
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.parts import open_parts
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.classify.task import ClassifyTask, augmentation, unreadable
from convnext.tasks.prepared import OpenedImage
from convnext.tasks.pretrain import data, loss, prediction
from convnext.tasks.pretrain.metric import SHOWN_IMAGES, PretrainMetric
from convnext.tasks.shared import measured, measured_remarks, refuse_options
from convnext.text import counted

if TYPE_CHECKING:
    from convnext.tasks.exported import TaskExport

_REMEDY = "train a recipe such as finetune with model.weights set to this file"


class PretrainTask(ClassifyTask):
    """Pre-training by hidden patches. There are no classes."""

    name: ClassVar[str] = "pretrain"
    headline: ClassVar[str] = "loss"
    answer: ClassVar[type] = prediction.ReconstructionAnswer
    best_metrics: ClassVar[tuple[str, ...]] = BEST_METRICS["pretrain"]
    columns: ClassVar[tuple[str, ...]] = ("loss",)
    own: ClassVar[tuple[str, ...]] = ("augment.extra",)
    needs_head: ClassVar[bool] = False
    hub_pipeline: ClassVar[str] = "image-feature-extraction"
    options: ClassVar[tuple[str, ...]] = ()
    demo_recipe: ClassVar[str | None] = "pretrain_digits"
    demo_next: ClassVar[tuple[str, ...]] = (
        "convnext predict {run} {run}/example.png --draw drawn",
        "convnext train digits --output {run}-tuned model.weights={run} model.name=convnextv2_atto 'model.depths=[1,1,1,1]' "
        "'model.widths=[16,32,64,128]' model.patch_size=1",
    )

    # Data

    def open(self, recipe: Recipe) -> TaskData:
        """Open the training and validation images of a recipe. Raises ConvnextError for no images, UsageError for another network."""
        from convnext.data.transforms.classify import train_transform

        _check_network(recipe)
        train, val, remarks = open_parts(recipe, data.open_images, self.counts)
        given, recipe = recipe, measured(recipe, train)
        remarks += [*deep.remarks(train, recipe.data.range), *measured_remarks(recipe, given)]
        samples = data.SeededSamples(train, train_transform(augmentation(recipe)), recipe.seed)
        return TaskData(samples, self.evaluation_samples(val, self.preprocessing(recipe)), [], remarks, recipe=recipe)

    def open_labelled(self, where: str, classes: list[str] | None, num_classes: int) -> ClassifySource:
        """Open images to evaluate a network on; they need no labels."""
        return data.open_images(where)

    def check(self, where: str, how: Reading = AS_RGB) -> list[str]:
        """Return everything wrong with the images that `where` names, one problem per line; reads all of them."""
        return unreadable(data.open_images(where), how)

    def overview(self, where: str) -> list[str]:
        """Return the number of images, and the source's remarks."""
        source = data.open_images(where)
        return [self.counts(source), *source.remarks]

    def counts(self, source: ClassifySource) -> str:
        """Return in one line how many images a source holds."""
        return f"{counted(len(source), 'image')}, labels not used"

    def mirrored(self, how: Preprocessing) -> Preprocessing:
        """Raise UsageError: there are no predictions of which mirror images could have a mean."""
        raise UsageError(f"--tta flip: a network of task {self.name} has no probabilities to average")

    # Training and evaluation

    def criterion(self, recipe: Recipe, data: TaskData) -> Criterion[ClassifyBatch]:
        """Return the mean squared error of hidden patches."""
        return loss.MaskedCriterion()

    def predict(self, model: nn.Module, batch: ClassifyBatch, how: Preprocessing) -> Sequence[Tensor]:
        """Return for each sample a vector: its loss, and of the first images also the pixels of the three parts that a report shows.

        What is hidden of a sample is a function of its position in the source. The parts are those of `prediction.in_pixels`.
        """
        seeds = torch.tensor(batch.indices, dtype=torch.long, device=batch.images.device)
        predicted, hidden = model(batch.images, seeds)
        outputs = list(loss.masked_losses(batch.images, predicted, hidden)[:, None])
        for row, index in enumerate(batch.indices):
            if index < SHOWN_IMAGES:
                one = slice(row, row + 1)
                parts = prediction.in_pixels(batch.images[one], predicted[one], hidden[one], how)
                outputs[row] = torch.cat([outputs[row], *(part.flatten() for part in parts)])
        return outputs

    def metric(self, num_classes: int, source: ClassifySource) -> Metric[ClassifyBatch, Tensor]:
        """Return an empty metric."""
        return PretrainMetric(source)

    def keeping_outputs(self, metric: Metric[ClassifyBatch, Tensor]) -> Metric[ClassifyBatch, Tensor]:
        """Raise UsageError: there are no labels for a user's own metrics."""
        return Task.keeping_outputs(self, metric)

    def reporter(self) -> Reporter[ClassifySource]:
        """Return the module that words and draws evaluations."""
        from convnext.tasks.pretrain import report

        return report

    # Use

    def infer(
        self,
        model: nn.Module,
        images: Sequence[OpenedImage],
        preprocessing: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        /,
        *,
        class_ids: ClassIds | None = None,
        **options: object,
    ) -> list[ClassifyPrediction]:
        """Return what the network predicts for hidden patches of each image."""
        refuse_options(self.name, options, self.options)
        return prediction.infer(model, images, preprocessing, device)

    def embed(self, model: nn.Module, images: Sequence[OpenedImage], preprocessing: Preprocessing, device: torch.device) -> Tensor:
        """Return the encoder's pooled last map of each image, (N, C) float32 on the CPU."""
        return prediction.embed(model, images, preprocessing, device)

    def class_names(self, count: int) -> list[str]:
        """Return names for classes, which the task does not have."""
        return Task.class_names(self, count)

    def possible_class_names(self, count: int) -> list[list[str]]:
        """Return none: there are no classes."""
        return []

    # Export

    def export(self) -> "TaskExport":
        """Raise UsageError: a network that was only pre-trained answers nothing."""
        raise UsageError(f"a network of task {self.name} is not exported, because it answers nothing yet: {_REMEDY}")


def _check_network(recipe: Recipe) -> None:
    """Raise UsageError for a network that can't learn in this way, or images that its patches do not fill."""
    entry = find(recipe.model.name)
    if entry.task != PretrainTask.name:
        known = ", ".join(list_models("fcmae_*")[:3])
        raise UsageError(f"task {PretrainTask.name} trains networks such as {known}, and not {recipe.model.name}: give one as model.name")
    size = 8 * cast(int, recipe.model.get("patch_size") or 4)  # the stride of a ConvNeXt's last map
    height, width = sides(recipe.data.image_size)
    if height % size or width % size:
        raise UsageError(f"data.image_size must be a multiple of {size}, the size of {recipe.model.name}'s patches, not {height} x {width}")

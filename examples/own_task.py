"""A task of your own, `grade`: classes in an order, where a near miss counts less than a far one. See docs/extend/task.md."""

import torch
import torch.nn.functional as F

import convnext
from convnext.tasks.classify.metric import ClassifyMetric
from convnext.tasks.classify.task import ClassifyTask


def distance_loss(model, batch):
    """Cross-entropy, and the expected squared distance from the true grade."""
    logits = model(batch.images).float()
    grades = torch.arange(logits.shape[1], device=logits.device)
    squares = (grades - batch.labels[:, None]) ** 2
    return {"loss": F.cross_entropy(logits, batch.labels), "distance": 0.1 * (logits.softmax(1) * squares).sum(1).mean()}


class GradeMetric(ClassifyMetric):
    """All metrics of a classifier, and the quadratically weighted kappa (Cohen, 1968) in percent."""

    def compute(self):
        table = self.counts.confusion.double()  # [true, predicted]
        grades = torch.arange(len(table))
        weights, chance = (grades[:, None] - grades) ** 2, table.sum(1, keepdim=True) * table.sum(0) / table.sum()
        return super().compute() | {"kappa": 100 * float(1 - (weights * table).sum() / (weights * chance).sum())}


@convnext.register_task("grade")
class GradeTask(ClassifyTask):
    name = "grade"
    headline = "kappa"  # by which the best weights are chosen
    best_metrics = ("kappa", "top1")
    own = ("augment.extra", "eval.metrics")  # keys for code of your own that it honours: not train.loss

    def criterion(self, recipe, data):
        return distance_loss

    def metric(self, num_classes, source):
        return GradeMetric(num_classes, source)

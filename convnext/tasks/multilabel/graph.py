"""Networks of several labels as exported files."""

from convnext.tasks.classify.graph import ClassifyExport
from convnext.tasks.multilabel import prediction


class MultilabelExport(ClassifyExport):
    """The graph gives logits (N, num_classes), each of its own class."""

    def agreement(self, expected: object, found: object) -> float:
        """Return the fraction of the classes in either prediction that are in both; 1 where neither has one."""
        assert isinstance(expected, prediction.MultilabelPrediction)
        assert isinstance(found, prediction.MultilabelPrediction)
        one, other = (each.probabilities >= prediction.THRESHOLD for each in (expected, found))
        count = int((one | other).sum())
        return int((one & other).sum()) / count if count else 1.0

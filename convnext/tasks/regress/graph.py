"""Networks of numbers as exported files."""

from convnext.tasks.classify.graph import ClassifyExport
from convnext.tasks.regress.prediction import ValuePrediction


class ValueExport(ClassifyExport):
    """The graph gives numbers (N, 1)."""

    def agreement(self, expected: object, found: object) -> float:
        """Return 1 less the difference of the numbers, relative to the larger of both; at least 0."""
        assert isinstance(expected, ValuePrediction)
        assert isinstance(found, ValuePrediction)
        largest = max(abs(expected.value), abs(found.value), 1e-12)
        return max(0.0, 1 - abs(expected.value - found.value) / largest)

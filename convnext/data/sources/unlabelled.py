"""Images without labels, for pre-training: all those of a folder, or of labelled data without their labels."""

from pathlib import Path

from convnext.data.sources.base import ImageSource, Subset
from convnext.data.sources.folder import ImageFolder
from convnext.data.tables.columns import TargetKind
from convnext.data.walk import walk
from convnext.errors import ConvnextError, UsageError


class UnlabelledFolder(ImageFolder):
    """All images below a folder, sorted by path within each folder.

    Raises UsageError if there is no such folder, ConvnextError if it holds no images.
    """

    target_kind: TargetKind = "value"  # there are no classes of which each part should have its share

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"no folder {root}: data must be a folder of images, labelled data, or digits:train")
        found = walk(root)
        if not found.images:
            raise ConvnextError(f"{root} holds no images")
        self.root, self.classes, self.skipped, self.remarks = root, [], found.others, found.remarks()
        self.paths, self.labels = found.images, []

    def label(self, index: int) -> int:
        """Return 0."""
        return 0

    def label_bytes(self, index: int) -> bytes:
        """Return no bytes."""
        return b""


class Unlabelled(Subset[ImageSource]):
    """The images of another source without their labels."""

    target_kind: TargetKind = "value"

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, range(len(source)))
        self.classes: list[str] = []

    def label(self, index: int) -> int:
        """Return 0."""
        return 0

    def label_bytes(self, index: int) -> bytes:
        """Return no bytes."""
        return b""

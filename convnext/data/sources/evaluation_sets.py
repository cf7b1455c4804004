"""The published test sets for networks with ImageNet's classes, each evaluated by its authors' rules.

Their names are `imagenet-a:FOLDER` and so on: `imagenet.EVALUATION_SETS` has all of them with their layouts.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from convnext.data import imagenet
from convnext.data.sources.base import ClassifySource, ClassifySubset
from convnext.data.sources.corruptions import CORRUPTIONS, CorruptedImages, open_corrupted
from convnext.data.sources.open import open_source
from convnext.errors import ConvnextError, UsageError

_MAX_MISSING = 1  # classes without an output: of ImageNet-1K's classes, the 22K heads lack the teddy bear


class EvaluationSet(ClassifySubset):
    """Images of a published set, with the rules by which a network's answers are correct.

    Args:
        source: the images.
        classes: the synsets that compete, by label.
        outputs: for each of them the network's output, or -1 if the network has none.
        answers: for each image the labels that are correct; images without any are skipped. By default the image's own label.
        remarks: facts to report to the user, one per line.
    """

    def __init__(
        self,
        source: ClassifySource,
        classes: list[str],
        outputs: Sequence[int],
        answers: Sequence[Sequence[int]] | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(source, [i for i in range(len(source)) if answers is None or answers[i]])
        self.classes, self.outputs, self.remarks = classes, torch.tensor(outputs), [*remarks, *source.remarks]
        self._answers = answers
        self.corrupted = source if isinstance(source, CorruptedImages) else None

    def label(self, index: int) -> int:
        """Return the label of an image: the published one, or the first correct answer if the published one is not correct."""
        label = super().label(index)
        answers = [label] if self._answers is None else self._answers[self.indices[index]]
        return label if label in answers else answers[0]

    def competing(self, logits: Tensor) -> Tensor:
        """Return the logits (N, classes) of the set's classes from a network's (N, outputs); the row's minimum for a class without one."""
        chosen = logits[:, self.outputs.clamp(min=0).to(logits.device)]
        if (missing := self.outputs < 0).any():
            chosen[:, missing] = chosen[:, ~missing].amin(1, keepdim=True)
        return chosen

    def accepted(self, indices: Sequence[int]) -> Tensor | None:
        """Return which classes are correct for the images at these positions, bool (N, classes); None if only the label is."""
        if self._answers is None:
            return None
        accepted = torch.zeros(len(indices), len(self.classes), dtype=torch.bool)
        for row, index in zip(accepted, indices, strict=True):
            row[list(self._answers[self.indices[index]])] = True
        return accepted


def is_evaluation_set(where: str) -> bool:
    """Return whether `where` is a name for `open_evaluation_set`."""
    return where.partition(":")[0] in imagenet.EVALUATION_SETS and ":" in where


def open_evaluation_set(where: str, classes: Sequence[str] | None, num_classes: int) -> EvaluationSet:
    """Return the set that `where` names, for a network of `num_classes` outputs; `classes` are their names if they are known.

    Only the logits of the set's own classes compete: 200 for ImageNet-A and -R, 1,000 for the others, whatever the head.

    Raises UsageError if `where` names no folder, and ConvnextError if its layout is not the set's, or if the network lacks its classes.
    """
    name, _, folder = where.partition(":")
    if not folder:
        raise UsageError(f"{where} names no folder: give {where}FOLDER, with {imagenet.EVALUATION_SETS[name]}")
    kind = name.removeprefix("imagenet-")
    synsets = imagenet.subset_synsets(kind) if kind in ("a", "r") else imagenet.synsets(1000)
    outputs, remarks = _outputs(where, synsets, classes, num_classes)
    try:
        source, found = _open(kind, folder, synsets)
    except UsageError:
        raise
    except ConvnextError as error:
        raise ConvnextError(f"{where} is not laid out as that set ({imagenet.EVALUATION_SETS[name]}): {error}") from error
    if kind != "real":
        return EvaluationSet(source, synsets, outputs, remarks=remarks + found)
    answers = _answers(where, source)
    if [] in answers:
        remarks.append(f"skipped {answers.count([])} of {len(answers)} images, which have no ReaL label")
    return EvaluationSet(source, synsets, outputs, answers, remarks)


def _open(kind: str, folder: str, synsets: list[str]) -> tuple[ClassifySource, list[str]]:
    if kind in CORRUPTIONS:
        return open_corrupted(folder, kind, synsets)
    numbered = kind == "v2"  # its folders count the synsets
    return open_source(folder, [str(label) for label in range(len(synsets))] if numbered else synsets), []


def _outputs(where: str, synsets: list[str], classes: Sequence[str] | None, num_classes: int) -> tuple[list[int], list[str]]:
    """Return the output of each synset, -1 for none, and a remark for each synset without one."""
    if classes is None:
        classes = imagenet.synsets(num_classes) if num_classes in imagenet.SUBSETS else ()
    by_name = {name: output for output, name in enumerate(classes)}
    missing = [synset for synset in synsets if synset not in by_name]
    if len(missing) > _MAX_MISSING:
        raise ConvnextError(
            f"{where} needs a network with ImageNet's classes: this one, with {num_classes}, has no output called {missing[0]} "
            f"nor {len(missing) - 1} others of the {len(synsets)}"
        )
    remarks = [
        f"the network has no output for {synset} ({imagenet.readable([synset])[0]}): its images count as errors" for synset in missing
    ]
    return [by_name.get(synset, -1) for synset in synsets], remarks


def _answers(where: str, source: ClassifySource) -> list[list[int]]:
    """Return the ReaL labels of each image, looked up by the number in its published name."""
    labels, answers = imagenet.real_labels(), []
    for index in range(len(source)):
        match = re.search(r"ILSVRC2012_val_(\d{8})", source.name(index))
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise ConvnextError(f"{where}: {source.name(index)} does not have its published name, ILSVRC2012_val_00000001.JPEG or the like")
        answers.append(labels[int(match[1]) - 1])
    return answers

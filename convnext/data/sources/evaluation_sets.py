"""The published sets that networks of ImageNet's classes are tested on, each judged as its authors judge it.

Named `imagenet-a:FOLDER` and the like: `imagenet.EVALUATION_SETS` has all of them with the layouts they come in.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from convnext.data import imagenet
from convnext.data.sources.corruptions import CORRUPTIONS, CorruptedImages, open_corrupted
from convnext.data.sources.open import Source, Subset, open_source
from convnext.errors import ConvnextError, UsageError

_MOST_MISSING = 1  # classes without an output: of ImageNet-1K's, the 22K heads lack the teddy bear alone


class EvaluationSet(Subset):
    """Images of a published set, with all that judging a network's answers takes.

    Args:
        source: the images.
        classes: the synsets that compete, by label.
        outputs: for each of them the network's output that stands for it, or -1 for none.
        answers: for each image the labels that count as right; images that have none are left out. By default an image's
            own label.
        remarks: to be told to the user.
    """

    def __init__(
        self,
        source: Source,
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
        """The label of that position: the published one, or the first of the answers where it is none of them."""
        label = super().label(index)
        answers = [label] if self._answers is None else self._answers[self.indices[index]]
        return label if label in answers else answers[0]

    def competing(self, logits: Tensor) -> Tensor:
        """Of a network's logits (N, outputs) those of the classes (N, classes). A class without an output gets the row's least."""
        chosen = logits[:, self.outputs.clamp(min=0).to(logits.device)]
        if (missing := self.outputs < 0).any():
            chosen[:, missing] = chosen[:, ~missing].amin(1, keepdim=True)
        return chosen

    def accepted(self, indices: Sequence[int]) -> Tensor | None:
        """Which classes count as right at these positions, bool (N, classes); None where it is the label alone."""
        if self._answers is None:
            return None
        accepted = torch.zeros(len(indices), len(self.classes), dtype=torch.bool)
        for row, index in zip(accepted, indices, strict=True):
            row[list(self._answers[self.indices[index]])] = True
        return accepted


def is_evaluation_set(where: str) -> bool:
    """Whether `where` is for `open_evaluation_set`."""
    return where.partition(":")[0] in imagenet.EVALUATION_SETS and ":" in where


def open_evaluation_set(where: str, classes: Sequence[str] | None, num_classes: int) -> EvaluationSet:
    """The set that `where` names, for a network of `num_classes` outputs; `classes` are their names where they are known.

    The logits of the set's own classes alone compete: 200 of ImageNet-A and -R, 1,000 of the others, whatever the head.

    Raises UsageError if no folder is named, and ConvnextError if its layout is not the set's, or if the network has not its classes.
    """
    name, _, folder = where.partition(":")
    if not folder:
        raise UsageError(f"{where} names no folder: give {where}FOLDER, with {imagenet.EVALUATION_SETS[name]}")
    kind = name.removeprefix("imagenet-")
    synsets = imagenet.subset_synsets(kind) if kind in ("a", "r") else imagenet.synsets(1000)
    outputs, remarks = _outputs(where, synsets, classes, num_classes)
    try:
        source, told = _open(kind, folder, synsets)
    except UsageError:
        raise
    except ConvnextError as error:
        raise ConvnextError(f"{where} is not laid out as that set ({imagenet.EVALUATION_SETS[name]}): {error}") from error
    if kind != "real":
        return EvaluationSet(source, synsets, outputs, remarks=remarks + told)
    answers = _answers(where, source)
    if [] in answers:
        remarks.append(f"{answers.count([])} of {len(answers)} images have no ReaL label and are left out")
    return EvaluationSet(source, synsets, outputs, answers, remarks)


def _open(kind: str, folder: str, synsets: list[str]) -> tuple[Source, list[str]]:
    if kind in CORRUPTIONS:
        return open_corrupted(folder, kind, synsets)
    numbered = kind == "v2"  # its folders count the synsets
    return open_source(folder, [str(label) for label in range(len(synsets))] if numbered else synsets), []


def _outputs(where: str, synsets: list[str], classes: Sequence[str] | None, num_classes: int) -> tuple[list[int], list[str]]:
    """The output of each synset, -1 for none, and what is to be told of it."""
    if classes is None:
        classes = imagenet.synsets(num_classes) if num_classes in imagenet.SUBSETS else ()
    places = {name: output for output, name in enumerate(classes)}
    missing = [synset for synset in synsets if synset not in places]
    if len(missing) > _MOST_MISSING:
        raise ConvnextError(
            f"{where} wants a network of ImageNet's classes: this one, of {num_classes}, has no output called {missing[0]} "
            f"nor {len(missing) - 1} others of the {len(synsets)}"
        )
    told = [f"the network has no output for {synset} ({imagenet.readable([synset])[0]}): its images count as wrong" for synset in missing]
    return [places.get(synset, -1) for synset in synsets], told


def _answers(where: str, source: Source) -> list[list[int]]:
    """The ReaL labels of each image, found by the number in its published name."""
    labels, answers = imagenet.real_labels(), []
    for index in range(len(source)):
        match = re.search(r"ILSVRC2012_val_(\d{8})", source.name(index))
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise ConvnextError(f"{where}: {source.name(index)} does not have its published name, ILSVRC2012_val_00000001.JPEG or the like")
        answers.append(labels[int(match[1]) - 1])
    return answers

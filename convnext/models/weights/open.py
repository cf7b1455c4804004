"""Open weights: their tensors, the network they are of, its preprocessing, and the names of its classes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.models import calibration
from convnext.models.calibration import Calibration
from convnext.models.entry import Entry
from convnext.models.network import Spec
from convnext.models.pretraining.sparse import dense
from convnext.models.registry import BACKBONES, find
from convnext.models.weights import configuration, download, files, formats, published, wrapped
from convnext.models.weights.configuration import Shape
from convnext.models.weights.identify import FUNCTION, identify, identify_head
from convnext.models.weights.known import check_known, entry_of, is_ours
from convnext.models.weights.tags import table
from convnext.models.weights.tags.choose import best_tag

log = logging.getLogger("convnext")

Sizes = tuple[tuple[int, ...] | None, tuple[int, ...] | None]  # depths and widths of a ConvNeXt
ClassIds = Sequence[int | Sequence[int]]  # the data's own number of each class: COCO's category ids; values of masks, or R, G, B
# Among all published weights, only networks of another activation than the published code's have these sizes.
_OTHER_ACTIVATION: dict[Sizes, tuple[str, ...]] = {
    ((1, 2, 4, 2), (24, 32, 48, 64)): ("test_convnext",),
    ((1, 1, 1, 1), (32, 64, 96, 128)): ("test_convnext2", "test_convnext3"),
}


@dataclass(frozen=True)
class Opened:
    """Weights, and what is known about them."""

    state: dict[str, Tensor]
    spec: Spec  # the arguments of `create_model` that make their network
    task: str
    preprocessing: Preprocessing
    assumed: bool  # whether the preprocessing is a guess
    classes: list[str] | None = None
    class_ids: ClassIds | None = None
    source: str | None = None  # where they were downloaded from, by the hub's commit, or what they were trained from; without secrets
    file: str = "these weights"  # for messages
    described: bool = False  # whether the file is one of ours, which describes itself
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """The name of their network."""
        return cast("str", self.spec["name"])

    def function(self) -> dict[str, object]:
        """Return the arguments of their network that no tensor shows."""
        return {key: self.spec[key] for key in FUNCTION if self.spec.get(key) is not None}


def open_weights(weights: str | Path | Mapping[str, Tensor], name: str | None = None) -> Opened:
    """Read weights and what describes them: the file itself, a configuration beside it, or a table.

    Args:
        weights: a tag of the network `name` or "best", a file, an address, or a state dict.
        name: of the network, if it is known. Without it, weights in a foreign format are taken for a ConvNeXt's, alone or under a head.

    Raises UsageError or ConvnextError as `create_model` does.
    """
    entry = None if name is None else find(name)
    if isinstance(weights, Mapping):
        spec, part, _, state = _identified(files.strip_prefixes(weights), entry, "the state dict")
        return Opened(state, spec, part.task, part.published("")[0], True, file="the state dict")
    if entry is not None and weights == "best":
        weights = best_tag(entry)
    tag = str(weights) if entry is not None and str(weights) in entry.weights else None
    if entry is not None and tag is None and is_tag(str(weights)):
        raise UsageError(f"{name} has no weights called {str(weights)!r}, nor is there such a file{nearest(str(weights), entry.weights)}")
    downloaded = download.download(entry.weights[tag] if entry is not None and tag is not None else str(weights))
    state, about = files.read_weights(downloaded.path, downloaded.entry)
    if about:
        check_known(about, downloaded.path)
        state, calibrated = calibration.take(state, about, str(downloaded.path))
        source = downloaded.address or about.get("source")
        how = entry_of(about, downloaded.path).preprocessing().from_json(about["preprocessing"])
        named = about.get("classes"), about.get("class_ids")
        opened = Opened(state, about["model"], about["task"], how, False, *named, source, str(downloaded.path), True, calibrated)
        return opened if entry is None else _for_network(opened, entry)
    try:
        spec, part, known, state = _identified(state, entry, str(downloaded.path))
    except ConvnextError as error:
        raise ConvnextError(f"{error}{unknown_architecture(downloaded.address or str(downloaded.path))}") from error
    found = configuration.of(downloaded, _shape(spec, part)) if tag is None else None
    if found is not None:
        spec = {**spec, **found.function}
    elif known.startswith("timm") and spec["name"] not in (networks := _OTHER_ACTIVATION.get(_sizes(spec, part), ())) and networks:
        raise ConvnextError(
            f"{downloaded.path} has the sizes of timm's {' and '.join(networks)}, whose activation is another function than GELU: "
            "give the network's name too, or put its config.json beside the file"
        )
    how, assumed = _prepared(part, tag, found, downloaded, known)
    classes = None if found is None else found.classes
    return Opened(state, spec, part.task, how, assumed, classes, None, downloaded.address, str(downloaded.path))


def unknown_architecture(source: str) -> str:
    """Return the end of a message about weights that can't be used, if they are published ones of a network that is not known here."""
    row = table.find(source)
    if row is None or row.network in BACKBONES:
        return ""
    return f". They are published weights of {row.network}, an architecture that is not known here yet"


def _for_network(opened: Opened, entry: Entry) -> Opened:
    """Return described weights for the network of an entry: those of the backbone alone where they are under the head of another task."""
    theirs = find(opened.name) if is_ours(opened.name) else None
    if theirs is None or theirs.backbone is None or theirs.task == entry.task:
        return opened
    state, ignored = formats.unwrap(opened.state, alone=True)
    wrapped.warn_of_ignored(ignored, opened.file)
    spec = {key: value for key, value in opened.spec.items() if key in theirs.backbone.arguments}
    spec |= {"name": theirs.backbone.name, "num_classes": 0}
    return replace(opened, state=state, spec=spec, task=theirs.backbone.task, classes=None, class_ids=None, calibration=None)


def _identified(state: Mapping[str, Tensor], entry: Entry | None, file: str) -> tuple[Spec, Entry, str, dict[str, Tensor]]:
    """Return the arguments of the network that weights in a foreign format are of, its entry, the format, and its weights alone.

    `entry` is the network's, if it is known. Weights given for a head over a backbone may be of the backbone alone.
    """
    state = dense(state)
    if entry is not None and entry.backbone is not None:
        state = wrapped.without_shared_prefix(state)
    if entry is not None and entry.backbone is not None and not entry.is_whole(state):
        entry = entry.backbone
    if entry is None and (whole := identify_head(alone := wrapped.without_shared_prefix(state))) is not None:
        return whole[0], find(cast("str", whole[0]["name"])), whole[1], alone
    if entry is None or (entry.backbone is None and entry.format is None):
        state, ignored = formats.unwrap(state, alone=entry is not None)
        known = formats.recognise(state)
        wrapped.warn_of_ignored(ignored, file)
        try:
            spec: Spec = identify(formats.to_native(state, known), entry)
        except ConvnextError:
            if entry is None:
                raise
            spec = {"name": entry.name}  # filling the network with them then reports what is missing
        return spec, find(cast("str", spec["name"])), known, state
    spec = {"name": entry.name, "num_classes": entry.num_classes, "in_channels": 3}
    with torch.device("meta"):
        model = entry.make(num_classes=entry.num_classes, in_channels=3, drop_path=0.0)
    model.spec = spec
    if entry.backbone is None:
        state, ignored = wrapped.unwrapped(state, [next(iter(model.state_dict()))])
        wrapped.warn_of_ignored(ignored, file)
    native, known = entry.to_native(model, state)
    return {"name": entry.name, "num_classes": entry.count_classes(model, native)}, entry, known, dict(state)


def _sizes(spec: Spec, entry: Entry) -> Sizes:
    arguments = {**(entry.backbone or entry).fixed, **spec}
    return cast("Sizes", (arguments.get("depths"), arguments.get("widths")))


def _shape(spec: Spec, entry: Entry) -> Shape:
    backbone = entry.backbone or entry
    depths, widths = _sizes(spec, entry)
    num_classes, in_channels = cast("tuple[int, int]", (spec.get("num_classes", 0), spec.get("in_channels", 3)))
    return Shape(num_classes, in_channels, depths, widths, backbone.timm_name, cast("int", backbone.image_size))


def _prepared(
    entry: Entry, tag: str | None, found: configuration.Configuration | None, downloaded: download.Downloaded, known: str
) -> tuple[Preprocessing, bool]:
    """Return how images are prepared for weights in a foreign format, and whether that is a guess."""
    name = downloaded.path.name
    if tag is not None and tag in entry.weights:
        return entry.published(tag)[0], False
    if entry.backbone is None:
        stated = None if found is None else found.preprocessing
        if stated is None and known == "torchvision":
            stated = published.from_torchvision(entry.name)
        if stated is not None:
            return stated, False
    return entry.published(name)[0], not _is_published(name, entry)


def _is_published(file_name: str, entry: Entry) -> bool:
    addresses = {address.rpartition("/")[2] for address in entry.weights.values()}
    by_timm = (entry.backbone or entry).timm_name is not None
    tagged = by_timm and any(tag in file_name for tag in entry.weights)  # as `published.of_timm` looks for them
    return tagged or file_name in addresses or published.from_official(file_name) is not None


def is_tag(weights: str) -> bool:
    """Return whether that can only be a tag: it is not an address, has no ending, and no such file exists."""
    return "/" not in weights and not Path(weights.partition("#")[0]).exists() and "." not in weights

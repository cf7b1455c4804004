"""The preprocessing of published weights: what timm, torchvision, transformers and the paper state, as our `Preprocessing`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, ImageSize, Preprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import ConvnextError
from convnext.models.entry import Entry
from convnext.models.weights.tags import table

# The short side of the resize before the central 224 pixels (torchvision's ConvNeXt_*_Weights.IMAGENET1K_V1.transforms()).
_TORCHVISION = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232, "convnext_large": 232}
_OFFICIAL = re.compile(r"convnext_[a-z_]+?_(1k|22k|22k_1k)_(224|384)(_ema)?")  # the published code's file names
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # transformers' numbers of filters
_WARPED = 384  # pixels, from which on transformers' ConvNextImageProcessor takes the whole image

_Side = Annotated[int, Field(ge=1, le=4096)]
_Part = Annotated[float, Field(gt=0.05, le=1)]
_Number = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(gt=1e-8, le=1000)]


StatedT = TypeVar("StatedT", bound="_Stated")


class _Stated(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Timm(_Stated):
    """The keys of timm's `pretrained_cfg` that decide how an image is prepared, with timm's defaults."""

    input_size: tuple[int, _Side, _Side] = (3, 224, 224)
    test_input_size: tuple[int, _Side, _Side] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bicubic"
    crop_pct: _Part = 0.875
    test_crop_pct: _Part | None = None
    crop_mode: Literal["center", "squash", "border"] = "center"
    mean: tuple[_Number, ...] = (0.485, 0.456, 0.406)
    std: tuple[_Std, ...] = (0.229, 0.224, 0.225)


class _Transformers(_Stated):
    """The keys of transformers' preprocessor_config.json that do so, with ConvNextImageProcessor's defaults."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_center_crop: bool | None = None
    rescale_factor: float = 1 / 255
    size: _Side | dict[str, _Side | None] = {"shortest_edge": 384}
    crop_size: _Side | dict[str, _Side | None] | None = None
    crop_pct: _Part | None = None
    resample: int = 3
    image_mean: tuple[_Number, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[_Std, ...] = (0.5, 0.5, 0.5)


def from_timm(config: Mapping[str, object], where: object, image_size: int = 224) -> ClassifyPreprocessing:
    """Return the preprocessing that a `pretrained_cfg` of timm states.

    Size and crop are `input_size` and `crop_pct`, as timm's own `resolve_data_config` takes them by default. Some weights also have a
    larger `test_input_size`; it is taken only if it is `image_size`, the paper's.

    Args:
        config: the `pretrained_cfg`.
        where: its file or table, for messages.
        image_size: pixels a side in the paper's tables.

    Raises ConvnextError for an invalid value, and for a preparation that is not supported.
    """
    known = _checked(_Timm, {key: value for key, value in config.items() if value is not None}, where)
    (_, height, width), ratio = known.input_size, known.crop_pct
    if height != image_size and known.test_input_size is not None and known.test_input_size[1] == image_size:
        (_, height, width), ratio = known.test_input_size, known.test_crop_pct or ratio
    warp = known.crop_mode == "squash"
    if known.crop_mode == "border" or (warp and ratio != 1):
        raise ConvnextError(f"{where} asks for crop_mode {known.crop_mode!r} with crop_pct {ratio}, which is not supported")
    size = height if height == width else (height, width)
    return ClassifyPreprocessing(size, ratio, warp, known.interpolation, *_three(known.mean, known.std, where))


def from_transformers(config: Mapping[str, object], where: object) -> ClassifyPreprocessing:
    """Return the preprocessing that a preprocessor_config.json of transformers states. Raises ConvnextError as `from_timm` does."""
    known = _checked(_Transformers, {key: value for key, value in config.items() if value is not None}, where)
    kind = known.image_processor_type or known.feature_extractor_type or "ConvNextImageProcessor"
    if not (known.do_resize and known.do_rescale) or abs(known.rescale_factor * 255 - 1) > 1e-6 or known.resample not in _PILLOW:
        raise ConvnextError(f"{where} asks for images that are not resized, or are scaled or filtered in a way that is not supported")
    mean, std = _three(known.image_mean, known.image_std, where) if known.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    side, square = _side(known.size, "shortest_edge"), _side(known.size, "height", "width")
    crop = _side(known.crop_size, "height", "width") if known.do_center_crop else None
    short = side or square if kind.startswith("ConvNext") else side
    if kind.startswith("ConvNext") and short is not None and crop in (None, short):
        ratio, warp = known.crop_pct or 224 / 256, short >= _WARPED
        return ClassifyPreprocessing(short, 1.0 if warp else ratio, warp, _PILLOW[known.resample], mean, std)
    if side is not None and crop is not None and crop <= side:
        return ClassifyPreprocessing(crop, crop / side, False, _PILLOW[known.resample], mean, std)
    if square is not None and crop in (None, square):
        return ClassifyPreprocessing(square, 1.0, True, _PILLOW[known.resample], mean, std)
    raise ConvnextError(f"{where} asks for a {kind} with size {known.size} and crop_size {known.crop_size}, which is not supported")


def to_transformers(how: ClassifyPreprocessing) -> dict[str, object] | None:
    """Return what `from_transformers` reads back to the same; None for what transformers' image processors can't do."""
    numbers = {name: number for number, name in _PILLOW.items()}
    if isinstance(how.image_size, tuple) or how.letterbox or how.channels != 3 or how.interpolation not in numbers:
        return None
    whole = {"height": how.image_size, "width": how.image_size}
    if how.warp == (how.image_size >= _WARPED):
        kind: dict[str, object] = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": how.image_size}}
        kind["crop_pct"] = how.crop_ratio
    elif how.warp:
        kind = {"image_processor_type": "ViTImageProcessor", "size": whole}
    else:
        short = {"shortest_edge": int(how.image_size / how.crop_ratio)}
        kind = {"image_processor_type": "BitImageProcessor", "size": short, "do_center_crop": True, "crop_size": whole}
    flags = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    norm = {"rescale_factor": 1 / 255, "image_mean": list(how.mean), "image_std": list(how.std)}
    return kind | flags | {"resample": numbers[how.interpolation]} | norm


def to_timm(how: ClassifyPreprocessing) -> dict[str, object] | None:
    """Return the `pretrained_cfg` that `from_timm` reads back to the same; None for what timm's transforms can't do."""
    if how.letterbox or how.channels != 3:
        return None
    height, width = how.size
    mode = {
        "crop_pct": 1.0 if how.warp else how.crop_ratio,
        "crop_mode": "squash" if how.warp else "center",
        "interpolation": how.interpolation,
    }
    return {"input_size": [how.channels, height, width], **mode, "mean": list(how.mean), "std": list(how.std)}


def from_torchvision(name: str) -> ClassifyPreprocessing | None:
    """Return how torchvision tests its own weights of a network; None if it has none."""
    resize = _TORCHVISION.get(name)
    return None if resize is None else ClassifyPreprocessing(224, 224 / resize, interpolation="bilinear")


def from_official(file_name: str) -> tuple[ClassifyPreprocessing, int] | None:
    """Return how the paper's code tests a file of that published name, and its number of classes; None for other names.

    It tests on 384 pixels of the whole image, or on 224 cropped.
    """
    match = _OFFICIAL.fullmatch(file_name.partition(".")[0])
    if match is None:
        return None
    how = ClassifyPreprocessing(image_size=384, warp=True) if match[2] == "384" else ClassifyPreprocessing()
    return how, 21841 if match[1] == "22k" else 1000


# The functions of `Entry.published_by`: how the weights of a tag, file or address were tested, and their number of classes.


def of_convnext(entry: Entry, source: str) -> tuple[ClassifyPreprocessing, int]:
    """Return what was published for that name; for any other name the paper's 224 pixels, cropped, and ImageNet-1K's classes."""
    address = entry.weights.get(source, source)
    if address != source and (known := table.find(address)) is not None:
        return from_timm(known.as_timm(), f"the table's line of {known.name}"), known.classes
    return from_official(address.rpartition("/")[2]) or (ClassifyPreprocessing(), 1000)


def of_timm(entry: Entry, source: str) -> tuple[ClassifyPreprocessing, int]:
    """Return what timm notes for the tag in the source's name; for a name without one, what it notes for the first tag.

    Where weights were tested at the size of the paper's table and another, the table's is taken.
    """
    size = entry.image_size if isinstance(entry.image_size, int) else entry.image_size[0]
    if not entry.weights:
        return ClassifyPreprocessing(image_size=size), 1000
    name, tags = source.rpartition("/")[2], list(entry.weights)
    tag = max((tag for tag in tags if tag in name), key=len, default=tags[0])
    noted = timm_config(f"{entry.timm_name}.{tag}")
    assert noted is not None, f"{entry.timm_name}.{tag} is not in timm's table"
    return from_timm(noted, f"timm's table of {entry.timm_name}.{tag}", size), cast("int", noted["num_classes"])


def of_classic(entry: Entry, source: str) -> tuple[ClassifyPreprocessing, int]:
    """Return how torchvision tests its AlexNet, at the entry's size."""
    size = entry.image_size if isinstance(entry.image_size, int) else entry.image_size[0]
    return ClassifyPreprocessing(image_size=size, interpolation="bilinear"), 1000


def of_coco(entry: Entry, source: str) -> tuple[DetectPreprocessing, int]:
    """Return the published test on COCO."""
    return DetectPreprocessing(), entry.num_classes


def of_ade20k(entry: Entry, source: str) -> tuple[SegmentPreprocessing, int]:
    """Return the published single-scale test on ADE20K, by tag or file name: windows of the crop, two thirds of it apart."""
    crop = 640 if re.search(r"22k_640(x640)?$", source.rpartition("/")[2].partition(".")[0]) else 512
    return SegmentPreprocessing((4 * crop, crop), crop, 2 * crop // 3), entry.num_classes


def timm_config(network: str) -> dict[str, object] | None:
    """Return what timm notes about weights called NETWORK.TAG, by the table or the installed timm; None if it has none of that name."""
    if not re.fullmatch(r"\w+\.\w+", network):
        return None
    if (known := table.find(f"hf://timm/{network}")) is not None:
        return known.as_timm()
    from timm.models import get_pretrained_cfg

    try:
        found = get_pretrained_cfg(network)
    except RuntimeError:  # it knows the network, but not the tag
        return None
    return None if found is None else dict(found.to_dict())


def at_size(how: Preprocessing, size: ImageSize, source: str | None) -> Preprocessing:
    """Return a preprocessing for images of another size, with the crop that was published for weights from `source` at that size.

    Raises UsageError for the preprocessing of a detector or segmenter.
    """
    known, found = None if source is None else table.find(source), how.at_size(size)
    if known is None or known.test_crop is None or known.test_size != size or not isinstance(found, ClassifyPreprocessing):
        return found
    # Weights that were trained on from these may be prepared in another way, which is kept.
    return replace(found, crop_ratio=known.test_crop) if how == from_timm(known.as_timm(), known.name) else found


def gives_embeddings(source: str | None, outputs: int) -> bool:
    """Return whether published weights give embeddings in place of classes, as the image side of CLIP does.

    Args:
        source: an address or file, as `tags.table.find` takes it; None if it is unknown.
        outputs: of the head.
    """
    known = None if source is None else table.find(source)
    return known is not None and known.classes == outputs > 0 and "ImageNet" not in known.training


def licence_of(source: str) -> str | None:
    """Return the licence of published weights by the hub's name; None where it is unknown.

    Args:
        source: an address or file, as `tags.table.find` takes it. For weights of timm that the table lacks, timm is asked.
    """
    known = table.find(source)
    if known is not None or not source.startswith("hf://timm/"):
        return None if known is None else known.licence
    noted = timm_config(re.split("[@/]", source.removeprefix("hf://timm/"))[0])
    return None if noted is None else cast("str | None", noted.get("license"))


def _checked(schema: type[StatedT], values: Mapping[str, object], where: object) -> StatedT:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ConvnextError(f"{where} is invalid: {'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}") from error


def _three(mean: tuple[float, ...], std: tuple[float, ...], where: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(mean) not in (1, 3) or len(std) not in (1, 3):
        raise ConvnextError(f"{where} has the mean of {len(mean)} channels: only three are supported")
    return mean * (3 // len(mean)), std * (3 // len(std))


def _side(size: int | Mapping[str, int | None] | None, *keys: str) -> int | None:
    """Return the side of a square that `size` gives under all of `keys`; None if they differ or are missing."""
    if size is None or isinstance(size, int):
        return size
    sides = {size.get(key) for key in keys}
    return sides.pop() if len(sides) == 1 else None

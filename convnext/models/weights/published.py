"""How published weights want their images: what timm, torchvision, transformers and the paper state, as our `ClassifyPreprocessing`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError

# The short side of the resize before the central 224 pixels (torchvision's ConvNeXt_*_Weights.IMAGENET1K_V1.transforms()).
_TORCHVISION = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232, "convnext_large": 232}
_OFFICIAL = re.compile(r"convnext_[a-z_]+?_(1k|22k|22k_1k)_(224|384)(_ema)?")  # the published code's file names
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # transformers' numbers of filters
_WARPED = 384  # pixels, from which on transformers' ConvNextImageProcessor takes the whole image

_Side = Annotated[int, Field(ge=1, le=4096)]
_Part = Annotated[float, Field(gt=0.05, le=1)]
_Number = Annotated[float, Field(ge=-1000, le=1000)]
_Deviation = Annotated[float, Field(gt=1e-8, le=1000)]


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
    std: tuple[_Deviation, ...] = (0.229, 0.224, 0.225)


class _Transformers(_Stated):
    """The keys of transformers' preprocessor_config.json that do, with ConvNextImageProcessor's defaults."""

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
    image_std: tuple[_Deviation, ...] = (0.5, 0.5, 0.5)


def from_timm(config: Mapping[str, Any], where: object, image_size: int = 224) -> ClassifyPreprocessing:
    """How a `pretrained_cfg` of timm says that images are prepared.

    The size and crop are those that timm's own `resolve_data_config` gives by default, `input_size` and `crop_pct`. The larger
    `test_input_size` that it notes beside them for some is taken only where it is `image_size`, the paper's.

    Args:
        config: the `pretrained_cfg`.
        where: what states it, for messages.
        image_size: pixels a side in the paper's tables.

    Raises ConvnextError for what is not understood or can't be done here.
    """
    known = _checked(_Timm, {key: value for key, value in config.items() if value is not None}, where)
    (_, height, width), ratio = known.input_size, known.crop_pct
    if height != image_size and known.test_input_size is not None and known.test_input_size[1] == image_size:
        (_, height, width), ratio = known.test_input_size, known.test_crop_pct or ratio
    warp = known.crop_mode == "squash"
    if height != width:
        raise ConvnextError(f"{where} asks for images of {height} x {width} pixels: only squares can be prepared here")
    if known.crop_mode == "border" or (warp and ratio != 1):
        raise ConvnextError(f"{where} asks for crop_mode {known.crop_mode!r} with crop_pct {ratio}, which can't be done here")
    return ClassifyPreprocessing(height, ratio, warp, known.interpolation, *_three(known.mean, known.std, where))


def from_transformers(config: Mapping[str, Any], where: object) -> ClassifyPreprocessing:
    """How a preprocessor_config.json of transformers says that images are prepared. Raises ConvnextError as `from_timm` does."""
    known = _checked(_Transformers, {key: value for key, value in config.items() if value is not None}, where)
    kind = known.image_processor_type or known.feature_extractor_type or "ConvNextImageProcessor"
    if not (known.do_resize and known.do_rescale) or abs(known.rescale_factor * 255 - 1) > 1e-6 or known.resample not in _PILLOW:
        raise ConvnextError(f"{where} asks for images that are not resized, or scaled or filtered in a way that can't be done here")
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
    raise ConvnextError(f"{where} asks for a {kind} with size {known.size} and crop_size {known.crop_size}, which can't be done here")


def to_transformers(how: ClassifyPreprocessing) -> dict[str, Any] | None:
    """What `from_transformers` reads back to the same; None for what transformers' ConvNextImageProcessor can't do."""
    numbers = {name: number for number, name in _PILLOW.items()}
    if how.warp != (how.image_size >= _WARPED) or how.interpolation not in numbers:
        return None
    flags = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    size = {"size": {"shortest_edge": how.image_size}, "crop_pct": how.crop_ratio, "resample": numbers[how.interpolation]}
    norm = {"rescale_factor": 1 / 255, "image_mean": list(how.mean), "image_std": list(how.std)}
    return {"image_processor_type": "ConvNextImageProcessor"} | flags | size | norm


def from_torchvision(name: str) -> ClassifyPreprocessing | None:
    """How torchvision tests its own weights of a network, None where it has none."""
    resize = _TORCHVISION.get(name)
    return None if resize is None else ClassifyPreprocessing(224, 224 / resize, interpolation="bilinear")


def from_official(file_name: str) -> tuple[ClassifyPreprocessing, int] | None:
    """How the paper's code tests a file of that published name, and its number of classes; None for other names.

    384 pixels of the whole image, or 224 cropped.
    """
    match = _OFFICIAL.fullmatch(file_name.partition(".")[0])
    if match is None:
        return None
    how = ClassifyPreprocessing(image_size=384, warp=True) if match[2] == "384" else ClassifyPreprocessing()
    return how, 21841 if match[1] == "22k" else 1000


def of_convnext(address: str) -> tuple[ClassifyPreprocessing, int]:
    """How a ConvNeXt's weights were tested, and their number of classes, by a name that they were published under.

    Of any other name the paper's 224 pixels, cropped, of ImageNet-1K.
    """
    name = address.rpartition("/")[2]
    if address.startswith("hf://timm/") and (noted := timm_config(name)) is not None:
        return from_timm(noted, f"timm's table of {name}"), noted["num_classes"]
    return from_official(name) or (ClassifyPreprocessing(), 1000)


def timm_config(network: str) -> dict[str, Any] | None:
    """What the installed timm notes of weights called NETWORK.TAG, None where it has none of that name."""
    from timm.models import get_pretrained_cfg

    if not re.fullmatch(r"\w+\.\w+", network):
        return None
    try:
        found = get_pretrained_cfg(network)
    except RuntimeError:  # a network that it has, with a tag that it has not
        return None
    return None if found is None else dict(found.to_dict())


def _checked(schema: Any, values: Mapping[str, Any], where: object) -> Any:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ConvnextError(f"{where} is not understood: {'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}") from error


def _three(mean: tuple[float, ...], std: tuple[float, ...], where: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(mean) not in (1, 3) or len(std) not in (1, 3):
        raise ConvnextError(f"{where} has the mean of {len(mean)} channels: only images of three can be prepared here")
    return mean * (3 // len(mean)), std * (3 // len(std))


def _side(size: int | Mapping[str, int | None] | None, *keys: str) -> int | None:
    """The side of a square that `size` names by all of `keys`, None if it does not."""
    if size is None or isinstance(size, int):
        return size
    sides = {size.get(key) for key in keys}
    return sides.pop() if len(sides) == 1 else None

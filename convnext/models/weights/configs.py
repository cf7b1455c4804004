"""What other libraries need to build the network of converted weights: the arguments in their config.json.

`configuration.py` reads such files.
"""

from typing import cast

from convnext.models.network import Spec
from convnext.models.registry import find
from convnext.models.weights.identify import FUNCTION

# What transformers calls the activations.
_HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}
# What timm calls the arguments that differ from its networks', with the values that all of its names have which do not set them.
_TIMM: dict[str, tuple[str, object]] = {"in_channels": ("in_chans", 3), "patch_size": ("patch_size", 4), "kernel_size": ("kernel_sizes", 7)}
_TIMM |= {"stem": ("stem_type", "patch"), "head_norm_first": ("head_norm_first", False), "head_hidden_size": ("head_hidden_size", 0)}


def of_timm(spec: Spec) -> tuple[str, dict[str, object]]:
    """Return timm's name of a ConvNeXt, and the arguments that make it the network of `spec`, the arguments of `create_model`."""
    import timm

    name, sizes = cast("str", spec["name"]), {**find(cast("str", spec["name"])).fixed, **spec}
    if not timm.is_model(name):
        name = "convnextv2_tiny" if sizes.get("grn") else "convnext_tiny"
    arguments: dict[str, object] = {"depths": sizes["depths"], "dims": sizes["widths"]}
    arguments |= {theirs: sizes[key] for key, (theirs, usual) in _TIMM.items() if sizes.get(key, usual) != usual}
    if not sizes.get("grn"):
        arguments["ls_init_value"] = sizes["layer_scale"] or None
    return name, arguments


def of_transformers(spec: Spec, classes: list[str] | None, to: str) -> dict[str, object]:
    """Return the config.json of transformers for a ConvNeXt.

    Args:
        spec: arguments of `create_model`.
        classes: the names of its classes; None where unknown.
        to: "transformers", or "transformers-dinov3" for a backbone without head.
    """
    sizes = {**FUNCTION, **find(cast("str", spec["name"])).fixed, **spec}
    kind = ("ConvNextForImageClassification", "convnext")
    if to == "transformers-dinov3":
        kind = ("DINOv3ConvNextModel", "dinov3_convnext")
    elif sizes.get("grn"):
        kind = ("ConvNextV2ForImageClassification", "convnextv2")
    config: dict[str, object] = {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "num_channels": sizes["in_channels"],
        "depths": sizes["depths"],
        "hidden_sizes": sizes["widths"],
        **({} if to == "transformers-dinov3" else {"patch_size": sizes["patch_size"], "num_stages": 4}),
        **({} if sizes.get("grn") else {"layer_scale_init_value": sizes["layer_scale"]}),
        "hidden_act": _HIDDEN_ACT[cast("str", sizes["activation"])],
        # Of the last norm. transformers' default, 1e-12, is not what most networks have.
        "layer_norm_eps": spec.get("head_norm_eps") or spec.get("norm_eps", 1e-6),
    }
    if to == "transformers-dinov3":
        return config
    if classes is None:
        config["num_labels"] = sizes["num_classes"]
    else:
        config["id2label"] = dict(enumerate(classes))
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    return config

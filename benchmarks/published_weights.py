"""Write the table of published weights from the installed timm and torchvision.

python benchmarks/published_weights.py results-imagenet.csv

The argument is a file of that name from timm's repository (results/), which the installed timm lacks. Without it the table keeps its
accuracies.
"""

import csv
import sys
from pathlib import Path

import timm
import torch
import torchvision

from convnext.models.cost import count_cost
from convnext.models.load import cost_of

TABLE = Path(__file__).parent.parent / "convnext/models/weights/tags/published.csv"
COLUMNS = "network tag source address licence training classes mean std size test_size crop test_crop crop_mode interpolation top1"
COLUMNS = [*COLUMNS.split(), "parameters", "gmacs"]
OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"
# Parts of a tag → the data that they stand for, in the order of training.
DATA = {
    "clip_laion2b": "LAION-2B",
    "clip_laiona": "LAION-Aesthetic",
    "lvd1689m": "LVD-1689M without labels",
    "fcmae": "ImageNet-1K without labels",
    "in22k": "ImageNet-22K",
    "in12k": "ImageNet-12K",
    "in1k": "ImageNet-1K",
}
# The same weights: transformers' names, as its conversion scripts build them, after timm's.
V1 = {"fb_in1k": "224", "fb_in22k": "224-22k", "fb_in22k_ft_in1k": "224-22k-1k", "fb_in22k_ft_in1k_384": "384-22k-1k"}
V2 = {"fcmae_ft_in1k": "1k-224", "fcmae_ft_in22k_in1k": "22k-224"}
V2 |= {f"fcmae_ft_in22k_in1k_{size}": f"22k-{size}" for size in (384, 512)}
ONLY_1K = ("tiny", "small")  # the sizes of which those scripts name the weights of ImageNet-1K alone
# The end of the official file's name, by facebookresearch/dinov3, which hands the files out on request.
DINOV3 = {"tiny": "21b726bb", "small": "296db49d", "base": "801f2ba9", "large": "61fa432d"}
# Files that timm does not have, with the paper's accuracy where its tables print one.
MORE = {
    ("convnext_base", "fb_in1k_384"): ("convnext_base_1k_384.pth", "384:85.1"),
    ("convnext_large", "fb_in1k_384"): ("convnext_large_1k_384.pth", "384:85.5"),
}


def _of_timm(accuracies: dict[str, str]) -> list[dict[str, object]]:
    names = [*timm.list_models(pretrained=True, module="convnext"), *timm.list_models(pretrained=True, module="inception_next")]
    return [_timm_row(name, accuracies.get(name, "")) for name in sorted(names)]


def _timm_row(name: str, top1: str) -> dict[str, object]:
    noted, (network, tag) = timm.models.get_pretrained_cfg(name), name.split(".")
    row = {"network": network, "tag": tag, "source": "timm", "address": f"hf://{noted.hf_hub_id}", "licence": noted.license}
    row |= {"training": ", ".join(data for part, data in DATA.items() if part in tag), "classes": noted.num_classes}
    row |= {"mean": _numbers(noted.mean), "std": _numbers(noted.std), "size": noted.input_size[1], "crop": noted.crop_pct}
    row |= {"test_size": noted.test_input_size[1] if noted.test_input_size else "", "test_crop": noted.test_crop_pct or ""}
    row |= {"crop_mode": noted.crop_mode, "interpolation": noted.interpolation, "top1": top1, "url": noted.url}
    return row | _cost(network, noted.num_classes, noted.input_size[1])


def _cost(network: str, classes: int, size: int) -> dict[str, object]:
    with torch.device("meta"):
        found = count_cost(timm.create_model(network, num_classes=classes), size)
    return {"parameters": f"{found.parameters / 1e6:.3f}", "gmacs": f"{found.macs / 1e9:.3f}"}


def _of_torchvision() -> list[dict[str, object]]:
    rows = []
    for size in ("Tiny", "Small", "Base", "Large"):
        weights = getattr(torchvision.models, f"ConvNeXt_{size}_Weights").IMAGENET1K_V1
        how, network = weights.transforms(), f"convnext_{size.lower()}"
        row = {"network": network, "tag": "tv_in1k", "source": "torchvision", "address": weights.url, "licence": "bsd-3-clause"}
        row |= {"training": "ImageNet-1K", "classes": len(weights.meta["categories"]), "mean": _numbers(how.mean), "std": _numbers(how.std)}
        row |= {"size": how.crop_size[0], "crop": how.crop_size[0] / how.resize_size[0], "crop_mode": "center"}
        row |= {"interpolation": how.interpolation.value, "top1": f"{how.crop_size[0]}:{weights.meta['_metrics']['ImageNet-1K']['acc@1']}"}
        rows.append(row | _cost(network, row["classes"], row["size"]))
    return rows


def _of_others(by_timm: list[dict[str, object]]) -> list[dict[str, object]]:
    """The official files and transformers', whose weights timm has too, and the few that it has not."""
    known = {(row["network"], row["tag"]): row for row in by_timm}
    rows = [_as_official(row) for row in by_timm if str(row["url"]).startswith(OFFICIAL)]
    for (network, tag), (file, top1) in MORE.items():
        like = known[network, "fb_in1k"] | _cost(network, 1000, 384)
        like |= {"tag": tag, "source": "official", "address": f"{OFFICIAL}/{file}", "licence": "mit", "size": 384, "test_size": ""}
        rows.append(like | {"crop": 1.0, "test_crop": "", "crop_mode": "squash", "top1": top1})
    for row in by_timm:
        version, _, size = str(row["network"]).partition("_")
        if row["tag"] == "dinov3_lvd1689m":
            file = f"dinov3_convnext_{size}_pretrain_lvd1689m-{DINOV3[size]}.pth"
            like = row | {"crop": "", "crop_mode": "", "interpolation": ""}  # timm's choice
            rows.append(like | {"tag": "", "source": "official", "address": file})
            rows.append(_in_transformers(like, f"dinov3-convnext-{size}-pretrain-lvd1689m"))
        names = {"convnext": V1, "convnextv2": V2}.get(version, {})
        if row["tag"] in names and not (version == "convnext" and size in ONLY_1K and row["tag"] != "fb_in1k"):
            rows.append(_in_transformers(row, f"{version}-{size}-{names[row['tag']]}"))
    for row in [row for row in rows if row["tag"] == "fb_in1k_384"]:
        rows.append(_in_transformers(row, f"{str(row['network']).replace('_', '-')}-384"))
    for size in ("small", "base", "large"):
        found = cost_of(network := f"convnext_isotropic_{size}")
        row = known["convnext_base", "fb_in1k"] | {
            "network": network,
            "source": "official",
            "licence": "mit",
            "test_size": "",
            "test_crop": "",
        }
        row |= {"address": f"{OFFICIAL}/convnext_iso_{size}_1k_224_ema.pth", "top1": ""}
        rows.append(row | {"parameters": f"{found.parameters / 1e6:.3f}", "gmacs": f"{found.macs / 1e9:.3f}"})
    return rows


def _as_official(row: dict[str, object]) -> dict[str, object]:
    licence = "mit" if str(row["network"]).startswith("convnext_") else row["licence"]  # the authors' own of the first version
    return row | {"tag": "", "source": "official", "address": row["url"], "licence": licence}


def _in_transformers(row: dict[str, object], name: str) -> dict[str, object]:
    # Its processor always takes the whole image at 384 pixels; the cards' licences are those of the table's other lines of these weights.
    licence = "apache-2.0" if row["licence"] == "mit" else row["licence"]
    return row | {"tag": "", "source": "transformers", "address": f"hf://facebook/{name}", "licence": licence, "top1": ""}


def _numbers(values: object) -> str:
    return " ".join(map(str, values))  # type: ignore[call-overload]


def _read_accuracies() -> dict[str, str]:
    found: dict[str, dict[int, str]] = {}
    if len(sys.argv) > 1:
        for line in csv.DictReader(Path(sys.argv[1]).read_text("utf-8").splitlines()):
            found.setdefault(line["model"], {})[int(line["img_size"])] = line["top1"]
        return {name: " ".join(f"{size}:{float(top1):g}" for size, top1 in sorted(of.items())) for name, of in found.items()}
    return {f"{line['network']}.{line['tag']}": line["top1"] for line in csv.DictReader(TABLE.read_text("utf-8").splitlines())}


def main() -> None:
    """Write the table."""
    by_timm = _of_timm(_read_accuracies())
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
        table.writeheader()
        table.writerows([*by_timm, *_of_torchvision(), *_of_others(by_timm)])


if __name__ == "__main__":
    main()

"""Open what a user has of a network: all that `convnext.models.load` opens, and exported files."""

from pathlib import Path

from torch import nn

from convnext.errors import UsageError
from convnext.extend import giving
from convnext.models import load as models
from convnext.models.calibration import from_json
from convnext.models.load import Loaded
from convnext.models.weights import download
from convnext.models.weights.known import entry_of

ENDINGS = (".onnx", ".xml", ".pt2")


def load(source: str | Path, weights: str | None = None, network: nn.Module | None = None) -> Loaded:
    """Return a network in evaluation mode. `source` may also be a file that `convnext export` wrote, here or at an address.

    `network` is filled with the weights of a run whose network was given to `convnext.train` as `model=`. Arguments and errors are
    otherwise those of `convnext.models.load.load`.
    """
    if network is not None:
        with giving(model=network):
            return load(source, weights)
    name, file = (None, str(source)) if weights is None else (str(source), weights)
    if Path(file.partition("?")[0]).suffix in ENDINGS:
        return _load_exported(file, name)
    return models.load(source, weights)


def _load_exported(source: str, name: str | None) -> Loaded:
    from convnext.export import runtimes

    found = download.download(source)
    network, about = runtimes.open_exported(found.path)
    if name not in (None, network.spec["name"]):
        raise UsageError(f"{source} holds a {network.spec['name']}, not a {name}")
    how = entry_of(about, found.path).preprocessing().from_json(about["preprocessing"])
    came, described = found.address or about.get("source"), about.get("calibration")
    calibration = None if described is None else from_json(described)
    return Loaded(network, how, about["task"], about.get("classes"), source=came, class_ids=about.get("class_ids"), calibration=calibration)

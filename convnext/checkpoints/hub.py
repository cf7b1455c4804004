"""Finding weights: from a source's name to a file on this machine."""

import urllib.error
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from convnext.errors import ConvnextError, first_line

# In the order in which they are looked for: what others write, then what `convnext push` does. Under a name of its own, for
# libraries that look for the first would not know what is in it.
OWN_FILE = "best.safetensors"
_FILES = ("model.safetensors", "pytorch_model.bin", OWN_FILE)


def fetch(source: str) -> tuple[Path, str | None]:
    """The local file of a source, fetched if it is not here yet, and the entry named behind `#` if any.

    Args:
        source: a path; `hf://owner/name` or `hf://owner/name/file` on the Hugging Face hub (its cache, resumed downloads
            and HF_HUB_OFFLINE are huggingface-hub's own); or an `https://` address (kept in PyTorch's hub folder).

    Raises ConvnextError if it can't be had; the message says which file to put where.
    """
    address, _, entry = source.partition("#")
    if address.startswith("hf://"):
        path = _from_hub(address)
    elif address.startswith("https://"):
        path = _from_url(address)
    else:
        path = Path(address).expanduser()
    return path, entry or None


def _from_hub(address: str) -> Path:
    owner, name, *rest = address.removeprefix("hf://").split("/")
    repository, files = f"{owner}/{name}", ("/".join(rest),) if rest else _FILES
    reason: Exception | None = None
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except RepositoryNotFoundError as error:
            raise ConvnextError(f"the hub has no repository {repository}, or it is private and this machine not logged in") from error
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError that means: no network
            # Every file would be asked for over the network anew, so the rest are looked for in the cache alone.
            cached = [path for other in files if isinstance(path := try_to_load_from_cache(repository, other), str)]
            if cached:
                return Path(cached[0])
            reason = error
            break
        except EntryNotFoundError as error:
            reason = error
        except (HfHubHTTPError, OSError) as error:
            reason = error
            break
    raise ConvnextError(
        f"could not fetch {' or '.join(files)} of hf://{repository} ({first_line(reason)}). Where there is a network, "
        f"download https://huggingface.co/{repository}/resolve/main/{files[0]}, copy it to this machine and give its path as weights"
    ) from reason


def _from_url(address: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except (urllib.error.URLError, OSError) as error:
            raise ConvnextError(
                f"could not fetch {address} ({first_line(error)}). Where there is a network, download it and put it at {path}"
            ) from error
    return path

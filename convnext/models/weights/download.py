"""Download weights: from the name of a source to a file on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.data import download as files
from convnext.data.storage import objects
from convnext.data.storage.connection import is_stored
from convnext.errors import ConvnextError, UsageError
from convnext.models.weights.wrapped import INDEX

if TYPE_CHECKING:  # convnext.data.hub imports huggingface_hub, which files of this machine do not need
    from convnext.data.hub import HubFile

# In this order: the files of other libraries, the last two open_clip's, then that of `convnext push`. It has a name of its own, because
# libraries that look for the first would not understand its content.
OWN_FILE = "best.safetensors"
OF_OTHERS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = (*OF_OTHERS, OWN_FILE)
OF_RUN = (OWN_FILE, "last.safetensors")  # in a run folder, the one to use first


@dataclass(frozen=True)
class Downloaded:
    """A weight file on this machine."""

    path: Path
    entry: str | None = None  # of a wrapped checkpoint, as named after `#`
    address: str | None = None  # that it was downloaded from, without secrets, by the hub's commit; None for a local file
    on_hub: "HubFile | None" = None  # at its commit; also for an `https://` address of the hub

    def beside(self, name: str) -> Path | None:
        """Return a file of the same folder, or of the same commit of the repository; None if there is none.

        Raises ConvnextError if the hub does not answer.
        """
        if self.address is not None and is_stored(self.address):
            return objects.local_or_none(files.sibling(self.address, name), "weights")
        if self.on_hub is None:
            path = self.path.with_name(name)
            return path if self.address is None and path.is_file() else None
        from huggingface_hub.errors import EntryNotFoundError

        from convnext.data import hub

        folder = self.on_hub.file.rpartition("/")[0]
        where = self.on_hub.named(f"{folder}/{name}" if folder else name)
        try:
            return hub.in_cache(where) or hub.download(where)
        except EntryNotFoundError:  # with LocalEntryNotFoundError, which means: no network
            return None
        except hub.ERRORS as error:
            raise ConvnextError(f"could not download {where}, the configuration of these weights ({hub.reason(error, where)})") from error


def download(source: str) -> Downloaded:
    """Return the local file of a source, downloaded unless it is in the cache.

    Args:
        source: a path; `hf://owner/name`, `hf://owner/name@revision` or `hf://owner/name/file` on the Hugging Face hub; an
            `https://` or `http://` address; or a file or run folder in storage, as `s3://bucket/runs/mine`. After `#` the entry of a
            wrapped checkpoint.

    Raises UsageError for an invalid address, and ConvnextError if the download fails; the message says which file to put where.
    """
    if not source.startswith(files.REMOTE) and (path := expanded(source)).exists():
        return Downloaded(in_folder(path) or of_run(path) or path)
    address, _, entry = source.partition("#")
    if is_stored(address):
        return _from_storage(address, entry or None)
    if not address.startswith(files.REMOTE):
        return Downloaded(expanded(address), entry or None)
    from convnext.data import hub

    if address.startswith("hf://"):
        path, on_hub = _from_hub(hub.parse(address))
        return Downloaded(path, entry or None, str(on_hub), on_hub)
    return Downloaded(files.local(address, "weights"), entry or None, files.shown(address), hub.of_page(address))


def _from_storage(address: str, entry: str | None) -> Downloaded:
    """Return the local copy of an object, or of the weights of a folder in storage. Raises UsageError if there are none."""
    names = ("", *(f"/{name}" for name in (*OF_RUN, *OF_OTHERS)))
    for one in (f"{address.rstrip('/')}{name}" for name in names):
        if (path := objects.local_or_none(one, "weights")) is not None:
            return Downloaded(path, entry, one)
    raise UsageError(f"no weight file or run folder {address}: the folder of a run holds {' or '.join(OF_RUN)}")


def in_folder(path: Path) -> Path | None:
    """Return the weight file, or the index of shards, in a folder as transformers or open_clip writes it; None for another folder."""
    names = [name for file in OF_OTHERS for name in (file, f"{file}{INDEX}")]
    return next((path / name for name in names if (path / name).is_file()), None) if path.is_dir() else None


def expanded(path: str | Path) -> Path:
    """Return a local path, `~` replaced. Raises UsageError for a home directory that does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no such home directory") from error


def of_run(path: Path) -> Path | None:
    """Return the weight file of a run folder: the best, or else the last; None if there is none."""
    return next((path / name for name in OF_RUN if (path / name).is_file()), None) if path.is_dir() else None


def _from_hub(where: "HubFile") -> "tuple[Path, HubFile]":
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from convnext.data import hub

    if where.kind != "model":
        raise UsageError(f"{where} is a dataset's address: weights are at hf://owner/name")
    names = (where.file,) if where.file else FILES
    reason: BaseException | None = None
    for named in map(where.named, names):
        try:
            path = hub.download(named)
            return path, hub.at_commit(named, path)
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError that means: no network
            # Each other file would wait for the network again, so they are looked for in the cache only.
            for other in map(where.named, names):
                if (cached := hub.in_cache(other)) is not None:
                    return cached, hub.at_commit(other, cached)
            reason = error
            break
        except EntryNotFoundError as error:
            reason = error
        except hub.ERRORS as error:
            reason = error
            break
    repository = where.named("")
    lacks_all = isinstance(reason, EntryNotFoundError) and not isinstance(reason, LocalEntryNotFoundError)
    asked = " or ".join(names) if lacks_all else names[0]  # without a network, the usual name says enough
    raise ConvnextError(
        f"could not download {asked} of {repository} ({hub.reason(reason, where)}). On a machine with a network, download "
        f"https://huggingface.co/{where.repository}/resolve/{where.revision or 'main'}/{names[0]}, copy it to this machine "
        "and give its path as weights (--weights or model.weights)"
    ) from reason

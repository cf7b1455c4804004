"""Finding weights: from a source's name to a file on this machine."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from convnext.data import download as files
from convnext.data import hub
from convnext.data.hub import HubFile
from convnext.errors import ConvnextError, UsageError

# In the order in which they are looked for: what others write, then what `convnext push` does. Under a name of its own, for
# libraries that look for the first would not know what is in it.
OWN_FILE = "best.safetensors"
FILES = ("model.safetensors", "pytorch_model.bin", OWN_FILE)


@dataclass(frozen=True)
class Fetched:
    """A weight file on this machine."""

    path: Path
    entry: str | None = None  # of a wrapped checkpoint, as named behind `#`
    address: str | None = None  # where it was downloaded from, without secrets, by the hub's commit; None for a local file
    on_hub: HubFile | None = None  # at its commit; what an `https://` address of the hub names

    def beside(self, name: str) -> Path | None:
        """A file in the same folder, or of the same commit of the repository; None if there is none, or none can be had offline.

        Raises ConvnextError if the hub does not answer.
        """
        if self.on_hub is None:
            path = self.path.with_name(name)
            return path if self.address is None and path.is_file() else None
        folder = self.on_hub.file.rpartition("/")[0]
        where = self.on_hub.named(f"{folder}/{name}" if folder else name)
        try:
            return hub.in_cache(where) or hub.download(where)
        except EntryNotFoundError:  # with LocalEntryNotFoundError, which means: no network
            return None
        except hub.ERRORS as error:
            raise ConvnextError(f"could not fetch {where}, which says how these weights are used ({hub.reason(error, where)})") from error


def fetch(source: str) -> Fetched:
    """The local file of a source, downloaded if it is not here yet.

    Args:
        source: a path; `hf://owner/name`, `hf://owner/name@revision` or `hf://owner/name/file` on the Hugging Face hub; or an
            `https://` or `http://` address. Behind `#` the entry of a wrapped checkpoint.

    Raises UsageError for what is no address, and ConvnextError if it can't be had; the message says which file to put where.
    """
    if not source.startswith(files.REMOTE) and (path := expanded(source)).exists():
        return Fetched(path)
    address, _, entry = source.partition("#")
    if address.startswith("hf://"):
        path, on_hub = _from_hub(hub.parse(address))
        return Fetched(path, entry or None, str(on_hub), on_hub)
    if address.startswith(files.REMOTE):
        return Fetched(files.local(address, "weights"), entry or None, files.shown(address), hub.of_page(address))
    return Fetched(expanded(address), entry or None)


def expanded(path: str | Path) -> Path:
    """A local path, `~` replaced. Raises UsageError for a home directory that is not there."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no such home directory") from error


def _from_hub(where: HubFile) -> tuple[Path, HubFile]:
    if where.kind != "model":
        raise UsageError(f"{where} is a dataset's address: weights are at hf://owner/name")
    names = (where.file,) if where.file else FILES
    reason: BaseException | None = None
    for named in map(where.named, names):
        try:
            path = hub.download(named)
            return path, hub.at_commit(named, path)
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError that means: no network
            # Every file would be asked for over the network anew, so the rest are looked for in the cache alone.
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
    raise ConvnextError(
        f"could not fetch {' or '.join(names)} of {repository} ({hub.reason(reason, where)}). Where there is a network, download "
        f"https://huggingface.co/{where.repository}/resolve/{where.revision or 'main'}/{names[0]}, copy it to this machine "
        "and give its path as weights"
    ) from reason

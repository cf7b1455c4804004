"""A summary of a run's data in few numbers: a resumed run compares it with its own, and reports what changed since it was stopped."""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Protocol, TypedDict

from convnext.text import counted, printable

_LISTED = 20_000  # images: of larger sets every checkpoint would be large with names, so only counts and digests are kept
_NAMED = 5  # in a message


class Listed(Protocol):
    """Images by position, without opening them."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Return the image's path within the dataset, which stays the same when the dataset moves."""

    def label_bytes(self, index: int) -> bytes:
        """Return bytes that change when the image's label changes."""


class PartContents(TypedDict):
    """A summary of the training or the validation images."""

    count: int
    names: str  # digest of all keys
    labels: str  # digest of all labels
    folders: dict[str, int]  # images by the first folder of their keys, "" for none
    keys: list[str]  # of each image; empty for large sets
    checks: list[int]  # of each image's label; empty for large sets


class DataContents(TypedDict):
    """A summary of a run's data, as plain values to be saved."""

    classes: list[str]
    train: PartContents
    val: PartContents


def contents(classes: Sequence[str], train: Listed, val: Listed) -> DataContents:
    """Return the summary of a run's data: classes, and for both parts the number of images and digests of names and labels."""
    return {"classes": [printable(name) for name in classes], "train": _part(train), "val": _part(val)}


def differences(before: DataContents, now: DataContents) -> list[str]:
    """Return what changed between two summaries, one phrase each. If classes differ, all labels do, and only the classes are named."""
    if before["classes"] != now["classes"]:
        return _class_differences(before["classes"], now["classes"])
    found = [f"train: {text}" for text in _part_differences(before["train"], now["train"])]
    return found + [f"val: {text}" for text in _part_differences(before["val"], now["val"])]


def _part(source: Listed) -> PartContents:
    names, labels, folders = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16), Counter[str]()
    keys: list[str] = []
    checks: list[int] = []
    for index in range(len(source)):
        # The same in every locale: names that are not UTF-8, or that Python takes for ASCII, hold surrogates, which no file takes.
        key, label = printable(source.key(index)).replace(os.sep, "/"), source.label_bytes(index)
        names.update(key.encode() + b"\0")
        labels.update(b"%d:" % len(label) + label)
        folders[key.partition("/")[0] if "/" in key else ""] += 1
        if len(source) <= _LISTED:
            keys.append(key)
            checks.append(zlib.crc32(label))
    return {
        "count": len(source),
        "names": names.hexdigest(),
        "labels": labels.hexdigest(),
        "folders": dict(folders),
        "keys": keys,
        "checks": checks,
    }


def _class_differences(before: list[str], now: list[str]) -> list[str]:
    gone, fresh = [name for name in before if name not in now], [name for name in now if name not in before]
    texts = [f"{_classes(gone)} no longer there"] if gone else []
    texts += [f"{_classes(fresh)} new"] if fresh else []
    return texts or [f"the classes are in another order ({_some(before)} before, {_some(now)} now)"]


def _classes(names: list[str]) -> str:
    return f"{'class' if len(names) == 1 else 'classes'} {_some(names)} {'is' if len(names) == 1 else 'are'}"


def _part_differences(before: PartContents, now: PartContents) -> list[str]:
    if before["names"] == now["names"] and before["labels"] == now["labels"]:
        return []
    if not before["keys"] or not now["keys"]:
        return _counted_differences(before, now)
    old, new = Counter(before["keys"]), Counter(now["keys"])
    added, removed = list((new - old).elements()), list((old - new).elements())
    texts = [f"{_images(added)} added" for _ in added[:1]] + [f"{_images(removed)} removed" for _ in removed[:1]]
    checks = dict(zip(before["keys"], before["checks"], strict=True))
    found = [(key, check) for key, check in zip(now["keys"], now["checks"], strict=True) if old[key] == new[key] == 1]
    if other := [key for key, check in found if checks[key] != check]:
        texts.append(f"{_images(other)} labelled differently")
    return texts or ["labels changed" if before["names"] == now["names"] else "the images are in another order"]


def _counted_differences(before: PartContents, now: PartContents) -> list[str]:
    if before["names"] == now["names"]:
        return ["labels changed"]
    if before["count"] == now["count"]:
        texts = [f"{now['count']} images as before, but different ones, or in another order"]
    else:
        texts = [f"{before['count']} images before, {now['count']} now"]
    old, new = before["folders"], now["folders"]
    changed = [name for name in {**old, **new} if name and old.get(name, 0) != new.get(name, 0)]
    return texts + [f"{name}: {old.get(name, 0)} before, {new.get(name, 0)} now" for name in islice(changed, _NAMED)]


def _images(keys: list[str]) -> str:
    return f"{counted(len(keys), 'image')} ({_some(keys)})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")

"""JSON Lines, the output that others are made from."""

import json
from collections.abc import Sequence
from pathlib import Path

from convnext.inference import fingerprint
from convnext.inference.answers import Answer, Done
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.journal import Journal
from convnext.tasks.base import Json


class Lines:
    """JSON Lines: one object per image, `image` its name, with the prediction's own keys or an `error`."""

    needs = frozenset({"prediction"})

    def __init__(self, path: Path, top: int | None = None, overwrite: bool = False, of: Fingerprint | None = None) -> None:
        self.top, self.journal, self.done = top, Journal(path, overwrite), Done()
        end = 0
        for line, end in self.journal.records():  # noqa: B007
            row = self._parsed(line)
            error = row.get("error")
            self.done[str(row["image"])] = None if error is None else str(error)
        fingerprint.check(path, of, bool(self.done))
        self.journal.keep(end, b'{"image": ')

    def _parsed(self, line: bytes) -> Json:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self.journal.foreign(f"has a line that is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise self.journal.foreign("has a line without an 'image'")
        parsed: Json = row
        return parsed

    def write(self, answers: Sequence[Answer]) -> None:
        rows = [one.item.label() | ({"error": one.error} if one.error is not None else self.row(one)) for one in answers]
        self.journal.append("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())

    def row(self, answer: Answer) -> Json:
        """Return what a line holds beside the image's name."""
        return answer.predicted.to_json(self.top)

    def finish(self) -> None:
        """Do nothing: every line is on the disk."""

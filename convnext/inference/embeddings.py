"""Write embeddings of images to files, batch by batch as all outputs."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convnext.errors import UsageError, need
from convnext.inference.answers import Answer
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.journal import Journal, refuse_foreign
from convnext.inference.lines import Lines
from convnext.models.weights.files import write_atomically
from convnext.tasks.base import Json
from convnext.text import printable


class FeaturesOutput(Lines):
    """Embeddings: an array (images, C) float32 in a .npy file, and the image of each row in .rows.jsonl beside it.

    With the ending .parquet `finish` also makes a table of both: columns `image` and `features`.
    """

    needs = frozenset({"features"})

    def __init__(self, path: Path, overwrite: bool = False, of: Fingerprint | None = None) -> None:
        if path.suffix not in (".npy", ".parquet"):
            raise UsageError(f"--features {path}: embeddings are written to a .npy or .parquet file")
        self.table = path if path.suffix == ".parquet" else None
        self.arrow = [need(module, "features") for module in ("pyarrow", "pyarrow.parquet")] if self.table else []
        for made in (path, path.with_suffix(".npy")):
            refuse_foreign(made, path.with_suffix(".rows.jsonl"), overwrite)
        super().__init__(path.with_suffix(".rows.jsonl"), overwrite=overwrite, of=of)
        self.names = [name for name, error in self.done.items() if error is None]
        self.array = Journal(path.with_suffix(".npy"), overwrite)
        self.width = self._width() if self.names else 0

    def _width(self) -> int:
        try:
            shape = np.load(self.array.path, mmap_mode="r").shape
        except (ValueError, OSError, EOFError) as error:
            raise self.array.foreign(f"is not a complete array ({error})") from error
        if len(shape) != 2 or shape[0] < len(self.names):
            raise self.array.foreign(f"has the shape {shape}, but {self.journal.path} lists {len(self.names)} rows")
        return int(shape[1])

    def write(self, answers: Sequence[Answer]) -> None:
        found = [answer.features for answer in answers if answer.features is not None]
        if found:
            self.width = self.width or len(found[0])
            if self.width != len(found[0]):
                raise self.array.foreign(f"has embeddings of {self.width} numbers, but this network gives {len(found[0])}")
            self._keep()
            self.array.append(np.stack(found).astype("<f4").tobytes())
            self.array.replace(self._header(len(self.names) + len(found)))
        super().write(answers)  # a line only for a row that exists

    def row(self, answer: Answer) -> Json:
        self.names.append(answer.item.name)
        return {"row": len(self.names) - 1}

    def _keep(self) -> None:
        """Drop the rows of a batch that was stopped before it wrote its lines."""
        header = self._header(len(self.names))
        if not self.names:
            self.array.keep(0)
            self.array.append(header)
        self.array.keep(len(header) + 4 * self.width * len(self.names))
        self.array.replace(header)

    def _header(self, rows: int) -> bytes:
        # The same length for every number of rows: NumPy leaves room for the first axis to grow.
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)})
        return header.getvalue()

    def finish(self) -> None:
        """Write the table, if one was asked for, all of it or nothing."""
        if self.names:
            self._keep()
        if self.table is not None and self.names:
            write_atomically(self.table, self._write_table)

    def _write_table(self, path: Path, rows: int = 8192) -> None:
        arrow, parquet = self.arrow
        array = np.load(self.array.path, mmap_mode="r")
        schema = arrow.schema([("image", arrow.string()), ("features", arrow.list_(arrow.float32(), self.width))])
        with parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, len(self.names), rows):
                names = [printable(name) for name in self.names[start : start + rows]]
                values = arrow.array(array[start : start + len(names)].reshape(-1))
                columns = [arrow.array(names), arrow.FixedSizeListArray.from_arrays(values, self.width)]
                writer.write_table(arrow.Table.from_arrays(columns, schema=schema))

"""A file of examples, of which each step reads its own: where the lines begin is found once."""

import mmap
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

from potluck.jsonl import LINE_BYTES_MAX, JsonlError, parse
from potluck.training_data import EXAMPLES_MAX, Example, ExampleError, example_of
from worker.engines.engine import JobError

_BOM = b"\xef\xbb\xbf"


class Lines:
    """By their order from 0, blank lines not counted. Raises OSError, and JobError for what is no example."""

    def __init__(self, path: Path) -> None:
        self._begins, self._ends = array("Q"), array("Q")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise JobError("bad_examples", "the file of examples is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin, size = 0, len(self._data)
        while begin < size:
            end = self._data.find(b"\n", begin)
            end = size if end < 0 else end
            if end - begin > LINE_BYTES_MAX or self._data[begin:end].removeprefix(_BOM).strip(b" \t\r"):
                self._begins.append(begin)
                self._ends.append(end)
            begin = end + 1
        if len(self) > EXAMPLES_MAX:
            raise JobError("bad_examples", f"there are {len(self)} examples; {EXAMPLES_MAX} are allowed")

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> Example:
        """Raises JobError: the examples were checked when they were uploaded, by this same code."""
        if index >= len(self):
            raise JobError("bad_examples", f"there are only {len(self)}")
        begin, end = self._begins[index], self._ends[index]
        data = self._data[begin : min(end, begin + LINE_BYTES_MAX + 1)]
        data = data.removesuffix(b"\r")
        if begin == 0:
            data = data.removeprefix(_BOM)
        try:
            if len(data) > LINE_BYTES_MAX:
                raise JsonlError(f"it is longer than {LINE_BYTES_MAX:,} bytes")
            return example_of(parse(data))
        except (JsonlError, ExampleError) as error:
            raise JobError("bad_examples", str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

"""The safetensors files of a Hugging Face directory: one, or several with an index. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from parallel.logical import Extent, Rectangle
from runtime.errors import UserError, one_line
from runtime.files import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


class WeightFiles:
    """Names and shapes of the tensors below `directory`, and their values in float32, a slice at a time."""

    def __init__(self, directory: Path) -> None:
        """Raises UserError if there are no safetensors files, one of them is broken, or they are not as indexed."""
        self._directory = directory
        self._open: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, Extent] = {}
        self.dtypes: set[str] = set()
        index = self._index()
        for file in dict.fromkeys(index.values()) if index else [SINGLE]:
            self._add(file)
        for name, file in index.items():
            if self._file_of.get(name) != file:
                raise UserError(
                    f"{directory / INDEX} places {name} in {file}, which does not hold it: restore the file"
                )

    def read_into(self, name: str, box: Rectangle, view: torch.Tensor) -> None:
        """Copy a box of tensor `name` into `view`; bf16 and fp16 become float32 exactly."""
        file = self._file_of[name]
        try:
            view.copy_(self._opened(file).get_slice(name)[box.slices])
        except (SafetensorError, OSError) as error:
            raise self._broken(file, error) from None

    def _index(self) -> dict[str, str]:
        """Tensor → file as the index says; empty if there is none."""
        if not self._directory.is_dir():
            raise UserError(f"{self._directory} is no directory: give one with config.json and safetensors files")
        path = self._directory / INDEX
        if path.is_file():
            values = read_json(path)
            places = values.get("weight_map") if isinstance(values, dict) else None
            if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
                raise UserError(f"{path} has no weight_map: restore the file")
            for file in places.values():
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise UserError(
                        f"{path} names {file!r}, which is not a safetensors file beside it: restore the index"
                    )
            return places
        if not (self._directory / SINGLE).is_file():
            raise UserError(f"{self._directory} has no {SINGLE} and no {INDEX}{self._pickled()}")
        return {}

    def _pickled(self) -> str:
        old = sorted(path.name for kind in ("*.bin", "*.pth", "*.pt") for path in self._directory.glob(kind))
        if not old:
            return ": give a directory with weights"
        return (
            f", only {old[0]}: pickled files can run code and are not read, convert them with transformers' "
            "save_pretrained(safe_serialization=True)"
        )

    def _add(self, file: str) -> None:
        opened = self._opened(file)
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            if name in self._file_of:
                raise UserError(f"{self._directory}: {name} stands in {self._file_of[name]} and in {file}: keep one")
            tensor = opened.get_slice(name)
            if tensor.get_dtype() not in _DTYPES:
                raise UserError(
                    f"{self._directory / file}: {name} is of type {tensor.get_dtype()}: convert it to one of "
                    f"{', '.join(_DTYPES.values())}"
                )
            self.dtypes.add(_DTYPES[tensor.get_dtype()])
            self._file_of[name] = file
            self.shapes[name] = tuple(tensor.get_shape())

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self._directory / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise self._broken(file, error) from None
        return self._open[file]

    def _broken(self, file: str, error: Exception) -> UserError:
        return UserError(f"{self._directory / file} cannot be read ({one_line(error)}): get it from its origin again")

"""Writes a checkpoint's weights in a Hugging Face layout, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.tokenizer import Tokenizer
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.shard_file import Entry, ShardWriter
from parallel.logical import row_slices
from pretrain.interop.description import describe_model
from pretrain.interop.names import hugging_face_name, model_tensors
from pretrain.interop.tokenizer_files import tokenizer_files
from pretrain.shape import ModelShape
from runtime.errors import UserError
from runtime.files import staged_directory, write_atomic, write_json
from runtime.progress import ProgressBar

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARD_BYTES = 5_000_000_000
"""Usual size of a file, in bytes."""
INDEX = "model.safetensors.index.json"
_LAYOUT_OF = {"masked": "llada", "autoregressive": "llama"}


@dataclass(frozen=True)
class Export:
    """What will be written: the tensors of each file by logical name, in order of depth."""

    checkpoint: Path
    manifest: CheckpointManifest
    layout: str
    dtype: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    shards: tuple[tuple[str, ...], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self._entry(name).bytes for names in self.shards for name in names)

    def summary(self) -> dict[str, Any]:
        """For people and scripts."""
        tensors = sum(map(len, self.shards))
        return {
            "format": self.layout,
            "dtype": self.dtype,
            "step": self.manifest.step,
            "tensors": tensors,
            "bytes": self.bytes,
            "shards": len(self.shards),
        }

    def write(self, out: Path, show_progress: bool = True) -> None:
        """Publish directory `out`. Raises UserError if it exists, cannot be written, or the checkpoint is damaged."""
        tensors = sum(map(len, self.shards))
        self.manifest.verify_headers(self.checkpoint)
        weight_map: dict[str, str] = {}
        with staged_directory(out) as staging, ProgressBar("export", tensors, show_progress) as bar:
            with BlockReader(self.checkpoint, self.manifest) as reader:
                for number, names in enumerate(self.shards, start=1):
                    file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
                    self._write_shard(staging / file, names, reader, bar)
                    weight_map |= {hugging_face_name(name, self.layout): file for name in names}
            write_json(staging / INDEX, {"metadata": {"total_size": self.bytes}, "weight_map": weight_map})
            write_json(staging / "config.json", self.config)
            for file, content in self.tokenizer.items():
                if isinstance(content, bytes):
                    write_atomic(staging / file, content)
                else:
                    write_atomic(staging / file, json.dumps(content, ensure_ascii=False, indent=1))

    def _entry(self, name: str) -> Entry:
        return Entry(hugging_face_name(name, self.layout), self.manifest.shapes[name], DTYPES[self.dtype])

    def _write_shard(self, path: Path, names: tuple[str, ...], reader: BlockReader, bar: ProgressBar) -> None:
        # transformers wants to know whose tensors these are
        with ShardWriter(path, [self._entry(name) for name in names], metadata={"format": "pt"}) as writer:
            for name in names:
                for box in row_slices(self.manifest.shapes[name]):
                    values = torch.empty(box.size)
                    reader.read_into("weight", name, box, values)
                    writer.append(values.to(DTYPES[self.dtype]))
                bar.advance(1, name)
            writer.finish()


def prepare_export(
    checkpoint: Path, tokenizer: Tokenizer, layout: str | None, dtype: str = "fp32", shard_bytes: int = SHARD_BYTES
) -> Export:
    """Check that `checkpoint` can be written in `layout` (default: the one of its objective) and plan its files.

    Raises UserError if its manifest is damaged, or the layout or tokenizer is not of its model.
    """
    manifest = CheckpointManifest.read(checkpoint)
    identity = manifest.identity
    wanted = _LAYOUT_OF.get(str(identity.get("objective.kind")))
    if wanted is None:
        raise UserError(f"{checkpoint} does not say its objective: export a checkpoint that a run wrote")
    if layout not in (None, wanted):
        raise UserError(
            f"--format {layout} is not for objective {identity['objective.kind']} (transformers would read it with "
            f"{'' if layout == 'llama' else 'no '}causal attention): use --format {wanted}"
        )
    shape = _shape(checkpoint, identity)
    shapes = model_tensors(shape)
    if shapes != manifest.shapes:
        raise UserError(f"{checkpoint} does not hold the tensors of its own model.*: get it from its origin")
    if tokenizer.vocabulary > shape.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary} ids, the model {shape.vocabulary}: give the run's own "
            "with --tokenizer"
        )
    length = int(identity["train.sequence_length"])
    item = DTYPES[dtype].itemsize
    return Export(
        checkpoint,
        manifest,
        wanted,
        dtype,
        describe_model(shape, wanted, length, tokenizer, dtype),
        tokenizer_files(tokenizer, wanted, length),
        _shards({name: torch.Size(size).numel() * item for name, size in shapes.items()}, shard_bytes),
    )


def _shape(checkpoint: Path, identity: Mapping[str, Any]) -> ModelShape:
    values = {k.removeprefix("model."): v for k, v in identity.items() if k.startswith("model.")}
    return ModelShape.parse(values, f"{checkpoint}: identity")


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Fill files in order; a tensor longer than a file has one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return tuple(map(tuple, shards))

"""A trained model of a run, ready to predict on one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.dataset import TokenDataset
from data_pipeline.tokenizer import Tokenizer
from parallel.checkpoint.catalogue import newest_checkpoint, verify_checkpoint
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reader import BlockReader
from parallel.logical import logical_parameters
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.model import Transformer
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.settings import read_yaml


@dataclass(frozen=True)
class TrainedModel:
    """A model with its run's configuration and tokenizer; `predict` is an `inference.predictor.Predictor`."""

    model: Transformer
    config: RunConfig
    tokenizer: Tokenizer
    checkpoint: Path
    manifest: CheckpointManifest

    @torch.no_grad()
    def predict(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Float32 logits [B, L, V] of token ids [B, L]."""
        return self.model.logits(ids_BL.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the model stands."""
        return next(self.model.parameters()).device


def load_trained(path: Path) -> TrainedModel:
    """Load the newest checkpoint of run directory `path`, or the checkpoint `path` itself.

    Every file is verified first. Raises UserError if there is none, or it is damaged or of another model.
    """
    checkpoint = path if path.name.startswith("step-") else newest_checkpoint(RunDirectory(path).checkpoints)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint: train it first with `lacuna train … --run {path}`")
    run = RunDirectory(checkpoint.absolute().parent.parent)
    config = RunConfig.parse(read_yaml(run.config), str(run.config))
    manifest = verify_checkpoint(checkpoint)
    mesh = Mesh.local()
    model = Transformer(config.model, mesh, None, config.objective.causal, config.train.head_chunk)
    reader = BlockReader(checkpoint, manifest)
    with torch.no_grad():
        for parameter, blocks in logical_parameters(model):
            for block in blocks:
                if manifest.shapes.get(block.name) != block.shape:
                    raise UserError(
                        f"{checkpoint} is a checkpoint of another model ({block.name} is "
                        f"{manifest.shapes.get(block.name)}, {run.config} wants {block.shape})"
                    )
                parameter[block.box.slices] = reader.read("weight", block.name)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    model = model.to(mesh.device, dtype).eval()
    tokenizer = TokenDataset(config.data.sources()[0][0], remote=config.data.remote).open_tokenizer()
    return TrainedModel(model, config, tokenizer, checkpoint, manifest)

"""Text to ids and back, exactly."""

from data_pipeline.tokenizer.base import Tokenizer
from data_pipeline.tokenizer.training import train_tokenizer

__all__ = ["Tokenizer", "train_tokenizer"]

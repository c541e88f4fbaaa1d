"""Text to tokens to batches of samples. Torch is used in no file but the loader."""

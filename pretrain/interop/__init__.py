"""Weights to and from the layouts of Hugging Face."""

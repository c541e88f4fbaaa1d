"""Datasets that lie in an object store, read block by block through a cache on local disk."""

"""One logical state, many layouts."""

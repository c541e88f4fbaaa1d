"""Studies: questions about the model families, answered by runs of the stack itself."""

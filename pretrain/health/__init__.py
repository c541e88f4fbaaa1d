"""Whether the ranks of a run are well: hangs, stragglers, traces on demand."""

"""Many processes, one model: mesh, engines, checkpoints."""

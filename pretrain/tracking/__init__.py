"""The record of a run: a local spool is the truth, MLflow is shown it."""

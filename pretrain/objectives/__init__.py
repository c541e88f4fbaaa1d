"""Training objectives: each gives a weighted sum and its denominator."""

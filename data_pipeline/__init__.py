"""Text to tokens to samples. Knows nothing of models, ranks or torch."""

"""Documents that stand in a corpus more than once, exactly or nearly."""

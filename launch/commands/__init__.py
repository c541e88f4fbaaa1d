"""Command groups of `lacuna`, one file a noun. Everything heavy is imported inside the commands."""

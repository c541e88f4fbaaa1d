"""What is done to documents between source and tokens; each stage is a switch."""

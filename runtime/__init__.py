"""What any process needs to run safely. Never imports torch."""

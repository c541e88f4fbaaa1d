"""What a run will need, said before it starts: memory, traffic, time, layouts, and a rehearsal without machines."""

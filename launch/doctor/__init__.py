"""Is a machine, or a group of nodes, fit for a run?"""

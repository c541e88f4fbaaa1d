"""The passes of a dataset build, each in units that any number of processes can do, in any order, again and again."""

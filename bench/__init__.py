"""Speed against this machine's own limits; `python -m bench.run` measures all of it in one run."""

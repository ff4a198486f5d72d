"""One file a measure: its formula, its null and its verdict. registry.py lists them all."""

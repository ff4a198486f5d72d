"""Training: one visible loop (loop.py) and what it calls."""

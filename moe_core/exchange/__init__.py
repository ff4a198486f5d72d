"""Checkpoints of Hugging Face's families from ours, and ours from theirs. Needs no transformers."""

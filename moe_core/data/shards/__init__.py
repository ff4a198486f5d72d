"""Text as shards: token ids in files that are mapped into memory, and an index that says what they are.

docs/data.md has the layout.
"""

"""Numbers and words of sentences; the sentences themselves stand beside their measures."""

"""From text to token batches in which every token keeps its document and its domain. No torch."""

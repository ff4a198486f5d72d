"""Synthetic text in four domains (finance, legal, code, general) for training and probing a mixture of experts."""

from data_gen.corpus import generate_corpus, write_document
from data_gen.row import DOMAINS, PROSE_DOMAINS, SPLITS, TUNING, Row

__all__ = ["DOMAINS", "PROSE_DOMAINS", "SPLITS", "TUNING", "Row", "generate_corpus", "write_document"]

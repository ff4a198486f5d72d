"""Certainty of any number: permutation, bootstrap, intervals, multiple comparisons. Nothing here knows a measure."""

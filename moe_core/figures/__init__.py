"""Figures: tidy DataFrame -> Altair chart. One function each, for the dashboard and `main.py plots`; no torch."""

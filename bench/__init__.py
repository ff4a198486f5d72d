"""Figures that the documentation quotes, each measured by a module that can be run."""

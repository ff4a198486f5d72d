"""Moescope: a microscope for Mixture-of-Experts routing (headless part; never imports streamlit)."""

__version__ = "0.1.0"

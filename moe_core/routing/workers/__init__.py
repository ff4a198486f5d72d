"""Routing of many files, counted side by side: in processes of this machine or on a Ray cluster."""

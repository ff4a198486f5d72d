"""Is the mixture better than a dense model, and which router is best? Trainings held against each other, seed by seed.

The order of a comparison: `plan` says everything beforehand; `runner` trains and scores each `trial`, unattended and
resumable; `speed` times what was trained; `results` puts it together as one JSON that tables and figures are made of.
"""

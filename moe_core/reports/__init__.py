"""Reports of results: a template a report, filled with what was measured."""

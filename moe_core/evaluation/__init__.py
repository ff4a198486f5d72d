"""How well a run predicts held-out text and how healthy its routing is: numbers, and a report in plain words."""

"""One training in several processes: torchrun starts them, one mesh says who does what."""

"""One command for the day a GPU is at hand: every claim about devices checked, then what a device can do measured."""

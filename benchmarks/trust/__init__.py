"""The scoreboard of what Studio promises; a family of figures is one module `fN_name.py`, see `figure.py`."""

"""Parts of ``train_tiny.py``: the shipped small DC-AE, its linear start, its data, its optimiser, its scores."""

"""The old place of the xView2 metric: ``python -m lib.scoring.xview2`` still works."""

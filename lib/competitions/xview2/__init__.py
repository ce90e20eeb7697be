"""xView2 (xBD): buildings and their damage."""

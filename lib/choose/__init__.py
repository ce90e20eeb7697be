"""Stage 05: what is decided on out-of-fold scenes."""

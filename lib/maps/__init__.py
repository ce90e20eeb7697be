"""An area instead of scenes: mosaics before and after in, rasters on one grid and what is made from them out."""

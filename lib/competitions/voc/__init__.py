"""One class per pixel, in the layout of PASCAL VOC."""

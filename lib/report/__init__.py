"""What a person reads at the end: tables for the terminal, and a page with pictures of out-of-fold scenes.

``python -m lib.report OLD NEW`` compares two experiment folders of a workdir, or one with the figures of its source.
"""

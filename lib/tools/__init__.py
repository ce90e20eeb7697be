"""What a competitor does between two runs of the stages; each tool is ``python -m lib.tools.<tool> --help``."""

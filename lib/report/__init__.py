"""What a person looks at: tables for the terminal, and a page per experiment, or of several, that opens offline.

``python -m lib.report --help`` says what can be asked for.
"""

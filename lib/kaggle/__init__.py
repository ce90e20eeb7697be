"""A trained experiment as one file and a folder of weights, for a machine without network, clone or second try.

``python -m lib.kaggle`` builds it: ``sources`` (which modules inference needs), ``weights`` (the attached dataset),
``text`` (script, notebook, metadata). ``driver``, ``gates`` and ``infer`` are what runs there, with ``plan`` and
``passes`` for what fits a budget of time; they go along.
"""

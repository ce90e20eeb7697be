"""How fast the library is, each row beside what else does the same work and beside its limit.

``python -m tests.benchmarks [name ...] [--json | --markdown] [--quick]`` runs them; without names, all.

A benchmark is a module ``tests/benchmarks/bench_<name>.py`` with one function, which the runner finds by its name::

    def rows(quick: bool) -> list[Race | Figure]: ...

``quick`` asks for the same work on less data, to see whether it runs. Making the rows is cheap: the data of a row are
made when its turn comes, in a folder that is removed behind it. Both kinds of row are in ``harness.py``:

- ``Race(name, make)``: sides that do the same work take turns. ``make(folder)`` returns side -> function without
  arguments; the first side is ours. A side whose name begins with "limit" does only the part of the work without which
  it cannot be done; what it returns is not compared. In place of a function stands the reason why a side cannot be
  run, as ``missing("pycocotools")`` says it.
- ``Figure(name, measure)``: ``measure(folder)`` returns column -> number, for what is no race: shares, growth. Figures
  of one module that have the same columns make one table, a row each.

Nothing is asserted about time. Sides that must agree are compared before they are timed, and a row whose sides differ
fails the run.
"""

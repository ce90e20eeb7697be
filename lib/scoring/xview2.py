"""The metric is in lib/competitions/xview2/metric.py; this runs it under its old name."""

from lib.competitions.xview2.metric import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The units of an experiment on many workers: of this machine, or of any number of machines by Dask.

plan       which command makes which units, and what it waits for
several    the plans of several experiments as one, for lib.tools.sweep and ladder
flow       the loop: start what can start, look at the disk for what is done, start again what was lost
engines    where commands run: threads of this process (Local) or the workers of a Dask scheduler (Dask)
launch     one command in a process of its own, on whatever machine: its log, its end
guard      the process between a worker and its command, so that none outlives its worker
hands      scenes of stage 05 that workers of other machines count beside the unit itself: heap (the calls of a pass),
           crew (which workers may help), relay (what runs in a Dask worker), hand (the process that counts there)
progress   what is said of the whole run: units, scenes, seconds
"""

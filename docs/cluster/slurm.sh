#!/bin/bash
#SBATCH --ntasks=8 --gpus-per-task=1 --cpus-per-task=8 --mem-per-gpu=24G --time=12:00:00 --signal=B:TERM@120
# sbatch docs/cluster/slurm.sh configs/x.yaml [further flags of lib.cluster], in the repository. docs/cluster.md
mkdir -p workdir
file=workdir/scheduler-$SLURM_JOB_ID.json
dask scheduler --port 0 --no-dashboard --scheduler-file "$file" &
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" dask worker --scheduler-file "$file" --nthreads 1 --no-dashboard \
    --resources "GPU=1 MEMORY=24" &
trap 'kill $(jobs -p); rm -f "$file"' EXIT
while [ ! -s "$file" ]; do sleep 1; done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$file")
python -m lib.cluster --config "$@" --scheduler "$address" &
run=$!
trap 'kill -TERM $run' TERM # near the end of the time: units save what they have
wait $run
code=$?
while kill -0 $run 2> /dev/null; do # the trap ended the wait, not the command
    wait $run
    code=$?
done
exit $code

#!/bin/bash
# docs/cluster/ssh.sh "a:0 a:1 b:0" configs/x.yaml [further flags of lib.cluster], in the repository, on a machine that
# a and b reach by its name (or by HEAD): a worker on each host:GPU. docs/cluster.md
set -e
places=$1
shift
address=tcp://${HEAD:-$(hostname)}:${PORT:-8786}
worker="$(command -v dask) worker $address --nthreads 1 --no-dashboard --resources 'GPU=1 MEMORY=24'"
mkdir -p workdir
dask scheduler --port "${PORT:-8786}" --no-dashboard > workdir/scheduler.log 2>&1 &
trap 'kill $(jobs -p)' EXIT # the workers' terminals close, and they end
for place in $places; do
    ssh -tt -o BatchMode=yes "${place%:*}" "cd '$PWD' && CUDA_VISIBLE_DEVICES=${place#*:} exec $worker" \
        < /dev/null > "workdir/worker-$place.log" 2>&1 &
done
python -m lib.cluster --config "$@" --scheduler "$address"

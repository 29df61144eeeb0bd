#!/usr/bin/env bash
# A run on a Cloud TPU slice: the same command on every host of it.
#
#   scripts/launch/tpu_vm.sh NAME ZONE CONFIG RUN
#
# NAME and ZONE: a TPU VM that exists, with malt-jax[tpu] installed in ~/malt on every host.
# CONFIG: a YAML file, copied to every host. RUN: a folder all hosts see (Filestore, NFS).
# The hosts find each other. The same command continues a run that was interrupted; a spot VM
# gets SIGTERM before it goes, on which every host saves its state and exits 143.
set -euo pipefail
if [ $# -ne 4 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 config=$3 run=$4

gcloud compute tpus tpu-vm scp --zone "$zone" --worker=all "$config" "$name:malt-run.yaml"
gcloud compute tpus tpu-vm ssh --zone "$zone" --worker=all "$name" --command \
  "exec ~/malt/bin/malt run --config malt-run.yaml --output-dir $(printf %q "$run")"

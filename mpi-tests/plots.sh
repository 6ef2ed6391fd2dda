#!/usr/bin/env bash
# Measures (measure.sh, which see for its variables) and draws (plot.py).
#
# A full pass writes docs/mpi-*.svg, docs/mpi-results.md and the crossover sizes in docs/tuning.md. A quick pass (RMAP_PLOT_QUICK=1)
# writes them to target/plots-quick. RMAP_PLOT_DOCS names another folder for them; RMAP_PLOT_DRAW=1 only draws what was measured.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
if [ -n "${RMAP_PLOT_QUICK:-}" ]; then
    folder=$ROOT/target/plots-quick documents=$folder
else
    folder=$ROOT/target/plots documents=$ROOT/docs
fi
export RMAP_PLOT_FOLDER=${RMAP_PLOT_FOLDER:-$folder}
"$here/setup.sh" plots
[ -n "${RMAP_PLOT_DRAW:-}" ] || "$here/measure.sh"
/usr/bin/python3 "$here/plot.py" "$RMAP_PLOT_FOLDER" "${RMAP_PLOT_DOCS:-$documents}"

#!/usr/bin/env bash
# The whole path on a synthetic corpus: three trained variants, verified bundles, a server, and a client's calls to it.
# Finished steps are skipped. Run it through `make demo`.
set -euo pipefail

python=$1
out=$2
runs="$out/runs"
config=training/configs/demo.yaml
mkdir -p "$runs"
started=$SECONDS
step() { printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started)); }
# Two trainings run at the same time; more than one thread each would slow both.
fit() {
  OMP_NUM_THREADS=1 "$python" -m training fit --config "$config" --corpus "$out/corpus" --variant "$1" --out "$runs/$1"
}

step 'Corpus: synthetic voices, noises, music and rooms'
"$python" -m training prepare demo --out "$out/corpus"

step "Training: act-da; clean and da beside it, into $runs/beside.log"
set -m # a process group of its own, so that the trap ends it as a whole
(fit clean && fit da) > "$runs/beside.log" 2>&1 &
beside=$!
set +m
trap 'kill -- -$beside 2>/dev/null && wait $beside || true' EXIT
fit act-da
echo 'clean and da:'
tail --lines=+1 --follow --pid=$beside "$runs/beside.log"
wait $beside
trap - EXIT

step 'Evaluation under interference'
evaluated=yes
for made in report.html robustness.json robustness.csv robustness.png saliency.png example-{clean,corrupted}.flac; do
  for variant in clean da act-da; do
    [ "$out/$made" -nt "$runs/$variant/checkpoint.pt" ] || evaluated=no
  done
done
if [ $evaluated = yes ]; then
  echo "$out/report.html and its files are newer than the runs"
else
  "$python" -m training evaluate "$runs/clean" "$runs/da" "$runs/act-da" --out "$out"
fi

step 'Export: ONNX and TorchScript with saliency in the graph, verified against autograd'
"$python" -m export "$runs/act-da" "$runs/clean" "$runs/da" --out "$out/bundles"

step 'Server: identify a clean and a corrupted utterance, with saliency maps'
"$python" deploy/ask_once.py --bundles "$out/bundles" --out "$out" "$out/example-clean.flac" "$out/example-corrupted.flac"

step 'Page: the bundles in a browser'
"$python" -m export page "$out/bundles" --out "$out/live" || echo 'Without the page; everything else is there.' >&2

cat <<END

Done in $((SECONDS - started)) s. Where to look:
  $out/report.html       the comparison of the variants
  $out/robustness.png    top-1 by SNR, interference and variant (robustness.csv has the numbers)
  $out/saliency.png      saliency maps of each variant for the corrupted utterance
  $out/answer-1.png      the server's answer to the clean utterance, drawn by the client; answer-2.png: to the corrupted
  $out/live/             the models in a browser: $python -m http.server -b 127.0.0.1 -d $out/live
  $out/bundles/          the exported models; $out/metrics.txt: the server's last metrics page
Next: make serve
END

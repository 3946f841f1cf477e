#!/usr/bin/env bash
# The whole path once, on a corpus that it makes: speech in, three trained variants, verified bundles, a server, and a
# client that asks it. Every step reuses what is done already. Run it through `make demo`.
set -euo pipefail

python=$1
out=$2
runs="$out/runs"
config=training/configs/demo.yaml
mkdir -p "$runs"
started=$SECONDS
step() { printf '\n== %s  (%d s)\n' "$1" $((SECONDS - started)); }
# Two of these run beside one another, so that more threads in each would only stand in the way.
fit() {
  OMP_NUM_THREADS=1 "$python" -m training fit --config "$config" --corpus "$out/corpus" --variant "$1" --out "$runs/$1"
}

step 'Corpus: synthetic voices, noises, music and rooms'
"$python" -m training prepare demo --out "$out/corpus"

step "Training: act-da; clean and da beside it, into $runs/beside.log"
set -m # a process group of its own, so that whatever ends this script can end it as a whole
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
  echo "$out/report.html and what belongs to it are newer than the runs"
else
  "$python" -m training evaluate "$runs/clean" "$runs/da" "$runs/act-da" --out "$out"
fi

step 'Export: ONNX and TorchScript with saliency in the graph, verified against autograd'
"$python" -m export "$runs/act-da" "$runs/clean" "$runs/da" --out "$out/bundles"

step 'Server: ask it about a clean and a corrupted utterance, explained'
"$python" deploy/ask_once.py --bundles "$out/bundles" --out "$out" "$out/example-clean.flac" "$out/example-corrupted.flac"

cat <<END

Done in $((SECONDS - started)) s. Where to look:
  $out/report.html       what was compared, and what came out
  $out/robustness.png    top-1 by SNR, interference and variant (robustness.csv has the numbers)
  $out/saliency.png      what each variant listened to in the corrupted utterance
  $out/answer-1.png      the server's answer to the clean utterance, drawn by the client; answer-2.png: to the corrupted
  $out/bundles/          the exported models; $out/metrics.txt: the server's last metrics page
Next: make serve
END

#!/usr/bin/env bash
# Measures what is worth knowing on an accelerator, in at most eight minutes, and prints it as tables for RESULTS.md:
#
#     pip install torch                           # optional: with PyTorch as well
#     benchmarks/accelerator.sh --data=DIR        # DIR/train/CLASS/FILE and DIR/val/CLASS/FILE, Imagenette for example
#     benchmarks/accelerator.sh                   # without images: made-up ones for the loader, no run on Imagenette
#     benchmarks/accelerator.sh --smallest        # whether all parts run, at the smallest sizes; on a CPU too
#
# --output=FOLDER keeps tables.md, and of each part NAME.md and NAME.log. PYTHON of the environment is the interpreter.
# The parts come in the order of their worth. Each has a limit; one that fails shows its error, and the others follow.
# The exit status is 0 if all parts ran. The parts up to `roofline`, and the steps in tf32, need the library alone; the
# others need requirements.txt, TensorFlow among it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

data="" output="" smallest="" limit=480
for argument in "$@"; do
  case $argument in
    --data=?*) data=$(realpath "${argument#*=}") ;;
    --output=?*) output=${argument#*=} ;;
    --smallest) smallest=yes limit=1200 ;;
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" && exit ;;
    *) echo "error: $argument is no option of this script; see --help." >&2 && exit 2 ;;
  esac
done
output=${output:-${TMPDIR:-/tmp}/alexnet-accelerator-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$output" && output=$(realpath "$output") || exit
python=${PYTHON:-python}
failed=()

# part NAME SECONDS COMMAND...: prints what a command prints, and keeps it; the command has that long at most.
part() {
  local name=$1 seconds=$2 began=$SECONDS status=0
  shift 2
  [[ $smallest ]] && seconds=$limit  # on a slow machine too
  ((seconds > limit - SECONDS)) && seconds=$((limit - SECONDS))
  echo "[$(printf %4d "$SECONDS") s] $name" >&2
  printf '\n### %s\n\n   ' "$name"
  printf ' %q' "${@//$output/DIR}"
  printf '\n\n'
  if ((seconds < 5)); then
    echo "Not run: the time is over."
    failed+=("$name")
    return
  fi
  timeout --kill-after=5 "$seconds" "$@" >"$output/$name.md" 2>"$output/$name.log" || status=$?
  "${show:-cat}" "$output/$name.md"
  if ((status == 0)); then
    printf '\n%s: %d s\n' "$name" $((SECONDS - began))
    return
  fi
  ((status == 124 || status == 137)) && echo "error: it took longer than $seconds s"
  printf 'error: status %d; the end of %s.log:\n\n' "$status" "$name"
  tail -n 15 "$output/$name.log" | sed 's/^/    /'
  failed+=("$name")
}

# run NAME SECONDS COMMAND...: a part that trains; of its lines the last ones are shown, as a block of text.
run() {
  local show=last_lines
  part "$@"
}

last_lines() {
  tail -n 15 "$1" | sed 's/^/    /'
}

# The device, the versions and the speeds.
about() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader 2>/dev/null
  "$python" -m pip list 2>/dev/null | grep -E '^(jax|jaxlib|jax-cuda[^ ]*plugin|flax|torch|tensorflow[^ ]*) '
  echo
  echo "${BENCHMARK_MACHINE:?shared.py found no device that works; shared.log says more}"
}

# steps NAME SECONDS FLAGS...: a step of the network beside the other contestants.
steps() {
  part "$1" "$2" "$python" benchmarks/train_step.py --network="$network" "${@:3}"
}

all_parts() {
  local fastest=("this project" "PyTorch, CUDA graphs, maps last") compiled="PyTorch, compiled, maps last"
  local network=PAPER batch=1024 others=(128 4096) pictures=500 records=2000 rounds=3
  local in_run=(--config.dtype=bfloat16) in_images=(--config.num_steps=300) in_digits=()
  if [[ $smallest ]]; then
    network=LENET5 batch=4 others=() pictures=200 records=200 rounds=1
    in_images=(--config.num_steps=2 --config.architecture=QUICKSTART --config.image_size=32 --config.batch_size=8)
    in_run=("${in_images[@]:1}") in_digits=(--config.num_steps=2 --config.views=1)
  fi

  date -u '+# Measured on %Y-%m-%d'
  BENCHMARK_MACHINE=$("$python" benchmarks/shared.py 2>"$output/shared.log") || unset BENCHMARK_MACHINE
  export BENCHMARK_MACHINE python
  export -f about
  part machine 30 bash -c about

  local bf16=(--batch="$batch" --dtype=bfloat16) few=(--rounds="$rounds" --seconds=60)
  steps step-bf16-"$batch" 130 "${bf16[@]}" --rounds="$rounds" --seconds=200 \
    --only "${fastest[@]}" "$compiled" "plain Flax"
  for other in "${others[@]}"; do
    steps step-bf16-"$other" 75 --batch="$other" --dtype=bfloat16 "${few[@]}" --no-check --only "${fastest[@]}"
  done
  part lrn 75 "$python" benchmarks/layers.py --only lrn1 lrn2 "${bf16[@]}" "${few[@]}"
  part roofline 45 "$python" benchmarks/roofline.py --network="$network" "${bf16[@]}" --costliest=3 --seconds=30

  run quickstart 75 "$python" main.py --config=configs/quickstart.py --workdir="$output/quickstart" "${in_digits[@]}"
  local images=${data:-$output/pictures}
  [[ $data ]] || part pictures 30 "$python" benchmarks/pictures.py "$images" "$pictures"
  part waiting 60 "$python" benchmarks/waiting.py --seconds=40 --config=configs/imagenette.py \
    --config.dataset=folder:"$images" "${in_run[@]}"
  if [[ $data || $smallest ]]; then
    run imagenette 75 "$python" main.py --config=configs/imagenette.py --workdir="$output/imagenette" \
      --config.dataset=folder:"$images" --config.dtype=bfloat16 "${in_images[@]}"
  fi

  for other in "$batch" "${others[@]}"; do
    steps step-tf32-"$other" 75 --batch="$other" "${few[@]}" --no-check --only "${fastest[@]}"
  done
  part input 60 "$python" benchmarks/input.py --pictures="$images/val" --records="$records" --rounds=2 --seconds=40

  printf '\n%d s; the files are in %s\n' "$SECONDS" "$output"
  if ((${#failed[@]})); then
    echo "error: these parts did not run to their end: ${failed[*]}"
    return 1
  fi
}

all_parts | tee "$output/tables.md"

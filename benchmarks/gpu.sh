#!/usr/bin/env bash
# Measure Convoy on a machine with an NVIDIA GPU, in less than eight minutes, and write one JSON file and one table.
#
# Needs: bash, git, coreutils' `timeout`; an NVIDIA GPU with its driver, 16 GB of GPU memory; Python 3.11 to 3.13 with this repository's packages and a
# torch that computes on it. On Linux that of the default index does, and no network is needed after the installation:
#     python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/pip install --no-deps -e .
# Takes no other data than the archive: CIFAR-10 as images, train/CLASS/… and test/CLASS/….
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu.sh CIFAR10 [--record-script FILE] [--out FOLDER] [--minutes N] [--dry-run]
       benchmarks/gpu.sh [CIFAR10] --device cpu --quick

  CIFAR10               archive of images: train/CLASS/… and test/CLASS/…
  --record-script FILE  airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, which trains on the same images
  --out FOLDER          where gpu.json, gpu.md and the logs are written (default: build/gpu)
  --minutes N           time for everything; what does not fit is stopped and listed (default: 8)
  --seeds "1 2"         seeds of each recipe
  --trials N            trainings of the record script, and measurements of each ceiling (default: 3)
  --python PYTHON       interpreter (default: .venv/bin/python if it exists, else python3)
  --dry-run             print the commands, run nothing
  --device cpu --quick  500 images and an epoch each, without a GPU: a test of this script, whose figures mean nothing
TEXT
}
fail() { printf 'gpu.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

archive="" record="" out=build/gpu minutes=8 seeds="1 2" trials=3 python="" dry="" device=cuda quick=""
while [ $# -gt 0 ]; do
  case $1 in
    --record-script | --out | --minutes | --seeds | --trials | --python | --device)
      [ $# -ge 2 ] || fail "$1 needs a value. See benchmarks/gpu.sh --help" 2
      case $1 in
        --record-script) record=$2 ;; --out) out=$2 ;; --minutes) minutes=$2 ;; --seeds) seeds=$2 ;;
        --trials) trials=$2 ;; --python) python=$2 ;; --device) device=$2 ;;
      esac
      shift 2 ;;
    --dry-run) dry=1; shift ;;
    --quick) quick=1; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; fail "unknown option $1" 2 ;;
    *) [ -z "$archive" ] || fail "two archives, $archive and $1; give one" 2; archive=$1; shift ;;
  esac
done
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac; }
number() { case $2 in '' | *[!0-9]*) fail "$1 is $2; it is a whole number from 1, such as $3" 2 ;; esac; }
number --minutes "$minutes" 8
number --trials "$trials" 3
for seed in $seeds; do number --seeds "$seed" '"1 2"'; done
case $device in cuda | cpu) ;; *) fail "--device is $device; there are: cuda, cpu" 2 ;; esac
[ "$device" = cuda ] || [ -n "$quick" ] || fail "--device cpu only tests this script, so it needs --quick. On a CPU type: python benchmarks/recipes.py CIFAR10 cifar10-10min" 2
[ -z "$archive" ] || archive=$(absolute "$archive")
[ -z "$record" ] || record=$(absolute "$record")
out=$(absolute "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "$archive" ] || [ -z "$quick" ] || archive=$PWD/samples/digits/digits.zip
[ -n "$archive" ] || { usage >&2; fail "CIFAR10, the archive, is missing" 2; }
[ -n "$dry" ] || [ -f "$archive" ] || fail "$archive does not exist. Give CIFAR-10 as an archive of images, train/CLASS/… and test/CLASS/…"
[ -z "$record" ] || [ -n "$dry" ] || [ -f "$record" ] || fail "$record does not exist. Leave --record-script out, or download it: https://github.com/KellerJordan/cifar10-airbench"
if [ -z "$python" ]; then if [ -x .venv/bin/python ]; then python=$PWD/.venv/bin/python; else python=python3; fi; fi
interpreter=$(command -v "$python") || fail "there is no interpreter $python. Give another: --python PYTHON"
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true ORT_DISABLE_TELEMETRY=1 DO_NOT_TRACK=true

if [ -z "$dry" ]; then
  install="Install them, in Python 3.11 to 3.13: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/pip install --no-deps -e ."
  lacking=$("$interpreter" -c '
import importlib.util
names = "torch torchvision timm pytorch_lightning pydantic pytest dvc mlflow onnxruntime hypothesis sklearn"
print(*[name for name in names.split() if not importlib.util.find_spec(name)])') || fail "$python does not run. Give another: --python PYTHON"
  [ -z "$lacking" ] || fail "$python lacks $lacking. $install"
  if [ "$device" = cuda ]; then
    found=$("$interpreter" -c '
import torch, shutil, subprocess
if not torch.cuda.is_available():
    built = f"torch {torch.__version__} is built " + (f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA")
    smi = shutil.which("nvidia-smi")
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True).stdout.strip() if smi else ""
    print(built + "; nvidia-smi " + (f"lists: {listed}" if listed else "lists no GPU" if smi else "is not installed"))')
    [ -z "$found" ] || fail "torch finds no CUDA device: $found.
Where a GPU is listed, install a torch for its driver (nvidia-smi prints the CUDA version; https://pytorch.org/get-started/locally). Elsewhere run this on a
machine with an NVIDIA GPU; --dry-run prints the commands, and --device cpu --quick tests this script without one."
  else
    export CUDA_VISIBLE_DEVICES=""
  fi
  mkdir -p "$out"
  rm -f "$out"/{gpu.json,gpu.md,steps.tsv,recipes.json,ceilings.json,gpu-tests.xml} "$out"/{inputs,recipes,ceilings,record,gpu-tests}.log
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
else
  scratch=SCRATCH
fi
export TMPDIR=$scratch
SECONDS=0

# Run a step for at most so many seconds, and no longer than what is left; a failure is listed, and the next step runs.
step() {
  local name=$1 limit=$2 left began=$SECONDS code=0
  shift 2
  printf '\n== %s ==\n%s\n' "$name" "$(printf '%q ' "$@")"
  [ -z "$dry" ] || return 0
  left=$((minutes * 60 - SECONDS))
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    code=124
  else
    timeout --kill-after 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" || code=${PIPESTATUS[0]}
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - began))" "$*" >>"$out/steps.tsv"
}

# The images as torch's files for the record script, and in quick mode an archive of 500 of them.
[ -n "$dry" ] || cat >"$scratch/inputs.py" <<'PYTHON'
import io, sys, tarfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from convoy.images.delivery import open_delivery
archive, folder, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
by_class = {}
for name, content in open_delivery(archive).files():
    parts = Path(name).parts
    if len(parts) >= 2:
        by_class.setdefault(parts[-2], []).append((parts[0] == "test", content))
labels = sorted(by_class)
splits = {"train": [], "test": []}
for label in labels:
    given = by_class[label][:most] if most else by_class[label]
    if not any(test for test, _ in given):
        given = [(number % 5 == 0, content) for number, (_, content) in enumerate(given)]
    for test, content in given:
        splits["test" if test else "train"].append((labels.index(label), content))
for split, items in splits.items():
    pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((32, 32))) for _, content in items]
    (folder / "cifar10").mkdir(exist_ok=True)
    content = {"images": torch.from_numpy(np.stack(pixels)), "labels": torch.tensor([at for at, _ in items]), "classes": labels}
    torch.save(content, folder / "cifar10" / f"{split}.pt")
with tarfile.open(folder / "few.tar", "w") as few:
    for split, items in splits.items() if most else ():
        for number, (at, content) in enumerate(items):
            member = tarfile.TarInfo(f"{split}/{labels[at]}/{number}.{Image.open(io.BytesIO(content)).format.lower()}")
            member.size = len(content)
            few.addfile(member, io.BytesIO(content))
PYTHON

if [ -n "$quick" ]; then
  images=$scratch/few.tar seeds=1 trials=1
  step inputs 60 "$interpreter" "$scratch/inputs.py" "$archive" "$scratch" 50
  step recipes 110 "$interpreter" benchmarks/recipes.py "$images" cifar10-10min --dry-run --seeds 1 --out "$out/recipes.json" --set train.epochs=1 train.batch_size=100
  step ceilings 110 "$interpreter" benchmarks/train.py "$images" --ceilings "$out/ceilings.json" --subjects convnet --quick --batch 32
else
  images=$archive
  # shellcheck disable=SC2086 # the seeds are words
  step recipes 300 "$interpreter" benchmarks/recipes.py "$images" cifar10-10min cifar10-96 --dry-run --seeds $seeds --out "$out/recipes.json"
  step ceilings 90 "$interpreter" benchmarks/train.py "$images" --ceilings "$out/ceilings.json" --subjects resnet18 convnet --trials "$trials" --batch 256 --steps 30
  [ -z "$record" ] || step inputs 60 "$interpreter" "$scratch/inputs.py" "$archive" "$scratch" 0
fi
if [ -n "$record" ]; then
  # It repeats its training 200 times; a copy repeats it as often as --trials.
  if [ -z "$dry" ]; then
    sed "s/range(200)/range($trials)/" "$record" >"$scratch/record.py"
    grep -q "range($trials)" "$scratch/record.py" || fail "$record has no range(200), the number of its trainings. Give airbench94_muon.py as published"
  fi
  step record 150 env -C "$scratch" "$interpreter" "$scratch/record.py"
else
  printf '\nrecord script: left out, since --record-script names no file\n'
fi
mapfile -t marked < <(grep -rl 'mark\.gpu' tests --include='test_*.py')
[ -z "$quick" ] || marked=(tests/training/test_prefetch.py)
step gpu-tests 150 "$interpreter" -m pytest -q -m gpu -p no:cacheprovider --junitxml="$out/gpu-tests.xml" "${marked[@]}"
[ -z "$dry" ] || exit 0

"$interpreter" - "$out" "$device" "${quick:-0}" "$record" "$archive" "$seeds" <<'PYTHON'
import json, os, platform, re, statistics, subprocess, sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree
import torch
from convoy.core.cpus import usable_cpus

out, device, quick, record, archive, seeds = Path(sys.argv[1]), *sys.argv[2:]

def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

def read(name):
    return json.loads((out / name).read_text()) if (out / name).exists() else {}

def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None

cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
steps = []
for line in (out / "steps.tsv").read_text().splitlines():
    name, code, seconds, command = line.split("\t", 3)
    status = {"0": "done", "124": "stopped: no time left", "137": "stopped: no time left"}.get(code, f"failed, exit code {code}")
    steps.append({"name": name, "status": status, "seconds": int(seconds), "command": command})
status = {step["name"]: step["status"] for step in steps}
tests = {}
if (out / "gpu-tests.xml").exists():
    suite = ElementTree.parse(out / "gpu-tests.xml").getroot().find("testsuite")
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    tests = counts | {"passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]}
recorded = {}
log = (out / "record.log").read_text() if (out / "record.log").exists() else ""
rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in log.splitlines() if line.startswith("|")]
ends = [row for row in rows if len(row) == 6 and row[1] == "eval"][1:]  # the first is the warm-up
if ends:
    recorded = {"accuracies": [float(row[4]) for row in ends], "seconds": [float(row[5]) for row in ends]}
report = {
    "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    "quick": quick == "1",
    "commit": output("git", "rev-parse", "HEAD"),
    "archive": Path(archive).name,
    "hardware": {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if device == "cuda" else None,
        "driver": (output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines() or [None])[0],
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": usable_cpus(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    },
    "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    | {name: installed(name) for name in ("torch", "torchvision", "timm", "pytorch-lightning", "numpy", "pillow")},
    "steps": steps,
    "gpu_tests": tests,
    "recipes": read("recipes.json"),
    "record_script": recorded,
    "images_per_s": read("ceilings.json"),
}
(out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")

def mean(values, share=False):
    middle = statistics.mean(values)
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * middle:.2f}{spread} %"

hardware = report["hardware"]
lines = [
    "# Convoy on a GPU" + (" (quick: a test of the script, whose figures mean nothing)" if report["quick"] else ""),
    "",
    f"`benchmarks/gpu.sh`, {report['date'][:10]}, commit {report['commit'][:12]}: {hardware['gpu'] or 'no GPU'}"
    + (f" ({hardware['gpu_memory_gb']} GB, driver {hardware['driver']})" if hardware["gpu"] else "")
    + f", {hardware['cores']} cores ({hardware['cpu']}), {hardware['memory_gb']} GB. "
    + ", ".join(f"{name} {value}" for name, value in report["versions"].items() if value)
    + f". Images: {report['archive']}; seeds {seeds}.",
    "",
    "| measurement | result | trials |",
    "|---|---|---|",
]
if tests:
    lines.append(f"| tests marked `gpu` | {tests['passed']} passed, {tests['failures'] + tests['errors']} failed, {tests['skipped']} skipped | |")
for name, results in report["recipes"].items():
    minutes = [result["minutes"] for result in results]
    accuracy = mean([result["accuracy"] for result in results])
    lines.append(f"| recipe `{name}` | {accuracy} in {60 * statistics.median(minutes):.0f} s, from the start of the process to the saved model | {len(results)} |")
if recorded:
    took = statistics.median(recorded["seconds"])
    lines.append(f"| record script | {mean(recorded['accuracies'])} in {took:.1f} s, without start, compilation and loading | {len(ends)} |")
elif not record:
    lines.append("| record script | left out: --record-script was not given | |")
for subject, rates in report["images_per_s"].items():
    ceiling = statistics.median(rates["ceiling"]) if rates["ceiling"] else None
    for name, values in rates.items():
        share = f", {statistics.median(values) / ceiling:.2f} of the ceiling" if name != "ceiling" else ", a bare loop over a batch in memory, bf16"
        lines.append(f"| `{subject}`, {name} | {statistics.median(values):,.0f} images/s{share} | {len(values)} |")
unfinished = [step for step in steps if step["status"] != "done"]
lines += [f"| {step['name']} | {step['status']} after {step['seconds']} s ({step['name']}.log) | |" for step in unfinished]
lines += ["", f"All steps: {sum(step['seconds'] for step in steps)} s."]
(out / "gpu.md").write_text("\n".join(lines) + "\n")
print("\n" + "\n".join(lines) + f"\n\nWritten: {out / 'gpu.json'}, {out / 'gpu.md'}")
skipped = device == "cuda" and tests.get("skipped", 0)
if unfinished or skipped:
    sys.exit("gpu.sh: not everything was measured: " + ", ".join([step["name"] for step in unfinished] + (["skipped gpu tests"] if skipped else [])))
PYTHON

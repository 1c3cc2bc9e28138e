#!/usr/bin/env bash
# Builds and runs the fuzzers of native/test/fuzz, each for a while or for a number of runs:
#   scripts/fuzz.sh [--seconds 60 | --runs N] [tokenizer] [model_spec] [grammar]
# Needs clang++ with libFuzzer (Debian: clang, libclang-rt-14-dev), CMake and make or ninja; installs nothing. Inputs that
# reach new code stay in build/fuzz/corpus for the next time. Prints a line for each fuzzer and fails on a finding, whose
# input it names: build/fuzz/native/test/fuzz/fuzz_NAME INPUT runs it again.
set -euo pipefail
cd "$(dirname "$0")/.."

limit=-max_total_time=60 targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) limit=-max_total_time=${2:?}; shift 2 ;;
    --runs) limit=-runs=${2:?}; shift 2 ;;
    -*) sed -n '2,7p' "$0" >&2; exit 2 ;;
    *) targets+=("$1"); shift ;;
  esac
done
[ ${#targets[@]} -gt 0 ] || targets=(tokenizer model_spec grammar)

compiler=${CXX:-clang++}
if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
  "$compiler" -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
  echo "fuzz: $compiler cannot link a fuzzer: install clang and libFuzzer (Debian: clang libclang-rt-14-dev), or set CXX" >&2
  exit 2
fi

build=build/fuzz
mkdir -p "$build"
generator=()
if command -v ninja >/dev/null; then generator=(-G Ninja); fi
log=$build/build.log what=fuzz
. scripts/quietly.sh
export CHATGLM_CUDA=OFF
[ -f "$build/CMakeCache.txt" ] ||
  quietly cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_COMPILER=$compiler" -DCHATGLM_FUZZ=ON
quietly cmake --build "$build" --parallel "$(nproc)" --target fuzzers

# What a run gave back goes to the system soon: else large inputs one after another count as a leak.
export ASAN_OPTIONS=quarantine_size_mb=32:allocator_release_to_os_interval_ms=100
failed=0
for name in "${targets[@]}"; do
  corpus=$build/corpus/$name run=$build/$name.log
  mkdir -p "$corpus"
  # An allocation may have megabytes, whatever a table of tensors says; memory of a run, those of ASan and of the corpus.
  if "$build/native/test/fuzz/fuzz_$name" "$limit" -max_len=1024 -timeout=30 -malloc_limit_mb=64 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=1 "-artifact_prefix=$build/$name-" "$corpus" >"$run" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$run")
    coverage=$(grep -oE 'cov: [0-9]+' "$run" | tail -1 | cut -d' ' -f2)
    echo "$name: $runs runs, coverage $coverage, no findings"
  else
    failed=1
    grep -vE '^#[0-9]+' "$run" | tail -n 60 >&2
    input=$(sed -n 's/.*Test unit written to //p' "$run" | tail -1)
    echo "$name: a finding, ${input:-see $run}"
  fi
done
exit $failed

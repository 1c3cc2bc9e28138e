#!/usr/bin/env bash
# Builds, tests and measures the CUDA backend on this machine, which has an NVIDIA GPU, the CUDA toolkit, CMake, a C++
# compiler, GoogleTest, and Node with what `npm ci` installs. Where Node or GoogleTest is missing, it takes what
# scripts/gpu-prepare.sh has put into .gpu/.
#
#   scripts/gpu-test.sh [--stages LIST] [--filter TESTS] [--bench ARGUMENTS]
#
#   --stages  names, separated by commas, or `all`; NAME:SECONDS gives a stage another limit of time
#     build        the CUDA library, the addon, the unit tests and the benchmark, for the GPU that is here
#     tests        the unit tests of the CUDA backend
#     facade       the package's own tests that run on a device, on this one
#     bench        the benchmark of kernels and steps
#   and, not run unless named:
#     older-build  the unit tests once more with nothing but PTX for compute capability 7.5, and for 8.0
#     older        these: the paths for older GPUs
#     sanitize     kernels' unit tests under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#     cli          chatglm bench --device cuda
#     sampling     what sampling options cost, through the package: benchmark/sampling.mjs
#     structured   what answers that follow a grammar cost, through the package: benchmark/structured.mjs
#     engine       what speculation gains, and the gaps between tokens while a prompt arrives: benchmark/engine
#     server       HTTP beside the facade, 64 and 256 streams of the 6B shape: benchmark/server.mjs
#     soak         many clients at once on the embedded model, for a minute: scripts/soak.mjs
#   --filter  for GoogleTest, in tests, older and sanitize
#   --bench   arguments of the benchmark (see benchmark/cuda/main.cc)
#
# Logs lie in $OUT, or build/gpu-logs. The last lines are a summary; the exit code is 0 if every stage passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
root=$PWD
export OUT=${OUT:-build/gpu-logs}
mkdir -p "$OUT" build

older_archs=(75 80)
suite_seconds=150                                            # limit of one test suite
quiet_seconds=40                                             # a test that takes longer hangs
alone='CudaBackendTest\.'                                    # suites that look at the GPU's free memory
heavy='^(Models/CudaModelTest|CudaBackendTest|CudaNaNTest)\.$' # too slow to be watched as a whole
heavy_sample='Models/CudaModelTest.TheSameCallsGiveTheSameBits/Q4:Models/CudaModelTest.TheSameCallsGiveTheSameBits/HeadsOfTheRealModel:Models/CudaModelTest.KeysAndValuesInQ8/F16:CudaNaNTest.WhatAnotherSequenceLeftInAPageIsNotSeen:CudaBackendTest.ACopiedPageContinuesOnItsOwn'
cores=$(nproc)

say() { echo "$*" >&3; } # on the terminal, beside the log
both() { # what is read, on the terminal and in the log
  local line
  while IFS= read -r line; do
    echo "$line"
    echo "$line" >&3
  done
}

declare -A limits=([build]=420 [older-build]=560 [tests]=300 [older]=420 [sanitize]=540 [facade]=300 [bench]=300 [cli]=300 [sampling]=240 [structured]=240 [engine]=200 [soak]=120 [server]=300)

# --- What is missing here, from .gpu/.

decompress() {
  if command -v xz >/dev/null; then
    xz -dc "$1"
  else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"
  fi
}
# Unpacks an archive of .gpu/ unless what it holds is there already, other than from an older archive.
unpack() { # archive, what it makes, the folder to unpack in
  local archive=.gpu/$1.tar.xz stamp=build/.gpu-$1 sum
  [ -f "$archive" ] || return 0
  sum=$(cksum <"$archive")
  if [ -e "$2" ] && { [ ! -f "$stamp" ] || [ "$(cat "$stamp")" = "$sum" ]; }; then return 0; fi
  mkdir -p "$3"
  decompress "$archive" | tar -x -C "$3" && echo "$sum" >"$stamp"
}
provide() {
  if ! command -v node >/dev/null && [ -f .gpu/node.xz ]; then
    mkdir -p build/gpu-node/bin
    if [ ! -x build/gpu-node/bin/node ]; then
      decompress .gpu/node.xz >build/gpu-node/bin/node && chmod +x build/gpu-node/bin/node
    fi
  fi
  if [ -x build/gpu-node/bin/node ]; then export PATH=$root/build/gpu-node/bin:$PATH; fi
  unpack modules node_modules .
  unpack dist server/dist .
  unpack googletest build/gpu-gtest/googletest build/gpu-gtest
  # Programs that were built elsewhere, where nothing was built here.
  if [ ! -f build/gpu/CMakeCache.txt ] && [ ! -f "build/gpu-${older_archs[0]}/CMakeCache.txt" ]; then
    unpack programs build/gpu .
  fi
}

# --- Building.

googletest_prefix() { # prints where the one from .gpu/ is installed, if there is one
  local sources=build/gpu-gtest/googletest prefix=$root/build/gpu-gtest/installed
  [ -d $sources ] || return 0
  if [ ! -d "$prefix" ]; then
    { cmake -S $sources -B build/gpu-gtest/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" \
      -DCMAKE_CXX_STANDARD=17 -DBUILD_GMOCK=OFF &&
      cmake --build build/gpu-gtest/build --parallel "$cores" --target install; } >&2 || return 1
  fi
  echo "$prefix"
}
configure() { # folder, then more arguments
  local folder=$1 prefix generator=()
  shift
  prefix=$(googletest_prefix) || return 1
  if [ ! -f "$folder/CMakeCache.txt" ] && command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S . -B "$folder" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DCHATGLM_TESTS=ON -DCHATGLM_CUDA=ON \
    ${prefix:+"-DCMAKE_PREFIX_PATH=$prefix"} "$@"
}
# What cmake-js would say, which itself needs more modules than are carried.
addon_settings() {
  if [ -d node_modules/node-addon-api ]; then
    echo '-DCMAKE_JS_VERSION=8'
    echo "-DCMAKE_JS_INC=$root/node_modules/node-api-headers/include;$root/node_modules/node-addon-api"
  fi
}
stage_build() {
  local settings
  mapfile -t settings < <(addon_settings)
  [ ${#settings[@]} -gt 0 ] || say 'build: no node-addon-api, so no addon'
  configure build/gpu "${settings[@]}" &&
    cmake --build build/gpu --parallel "$cores" --target all chatglm_cuda_tests chatglm_cuda_bench
}
stage_older-build() {
  local arch
  for arch in "${older_archs[@]}"; do
    CUDAARCHS=$arch-virtual configure "build/gpu-$arch" "-DCHATGLM_OUT=$root/build/gpu-$arch/out" &&
      cmake --build "build/gpu-$arch" --parallel "$cores" --target chatglm_cuda_tests || return 1
  done
}

# --- Unit tests. A process for each suite: after some errors a process gets nothing more from its GPU, and one for each
# test would take longer than the tests.

suites_of() { "$1" --gtest_list_tests | awk '$1 ~ /\.$/ { print $1 }'; }

# Runs the tests that a filter names. One that ends its process, or after which the GPU refuses everything, or that says
# nothing any more costs the tests behind it nothing: they are run anew.
run_suite() { # log, program, filter, then what runs it
  local log=$1 program=$2 filter=$3 names part=$1.part began=$SECONDS status culprit last size pid round
  shift 3
  for round in 1 2 3 4 5 6; do
    names=$("$program" --gtest_list_tests "--gtest_filter=$filter" |
      awk '$1 ~ /\.$/ && /^[^ ]/ { suite = $1 } /^  / { print suite $1 }')
    # In the foreground: who ends the stage ends this too.
    timeout --foreground -k 5 "$suite_seconds" "$@" "$program" --gtest_color=no "--gtest_filter=$filter" \
      >"$part" 2>&1 </dev/null &
    pid=$!
    last=$SECONDS size=0
    while kill -0 $pid 2>/dev/null; do
      sleep 0.2
      if [ "$(stat -c %s "$part")" != "$size" ]; then
        size=$(stat -c %s "$part")
        last=$SECONDS
      elif [ $((SECONDS - last)) -ge "$quiet_seconds" ]; then
        kill -TERM $pid 2>/dev/null
      fi
    done
    wait $pid
    status=$?
    culprit=
    if [ $status -gt 1 ]; then
      cat "$part"
      culprit=$(sed -n 's/^\[ RUN      \] //p' "$part" | tail -n 1)
      grep -qF "] $culprit (" "$part" && culprit= # that one had ended; it is the watching tool that complains
      echo "broke off: exit code $status${culprit:+ in $culprit}"
    elif grep -qE 'illegal|misaligned|unspecified launch failure|launch timed out|device-side assert' "$part"; then
      culprit=$(sed -nE 's/^\[  FAILED  \] ([^ ,]+).* ms\)$/\1/p' "$part" | head -n 1)
      awk -v culprit="$culprit" '{ print } /^\[  FAILED  \] / && index($0, culprit) { exit }' "$part"
    else
      cat "$part"
    fi >>"$log"
    rm -f "$part"
    [ -n "$culprit" ] || break
    names=$(awk -v culprit="$culprit" 'found { print } $0 == culprit { found = 1 }' <<<"$names")
    [ -n "$names" ] || break
    filter=$(paste -sd : <<<"$names")
  done
  echo "exit code $status after $((SECONDS - began)) s" >>"$log"
}
export -f run_suite
export suite_seconds quiet_seconds

# Counts what the logs of a folder say, prints what failed, and fails if anything did.
conclude() { # folder, name
  local log passed=0 failed=0 skipped=0 broken=0 unfinished=0 count
  for log in "$1"/*.log.part; do
    if [ -e "$log" ]; then cat "$log" >>"${log%.part}"; fi
  done
  for log in "$1"/*.log; do
    [ -e "$log" ] || continue
    echo "=== $(basename "$log" .log)"
    cat "$log"
    passed=$((passed + $(grep -c '^\[       OK \]' "$log")))
    skipped=$((skipped + $(grep -c '^\[  SKIPPED \] .* ms)$' "$log")))
    count=$(grep -c '^\[  FAILED  \] .* ms)$' "$log")
    failed=$((failed + count))
    if [ "$count" -gt 0 ]; then
      say "  $(basename "$log" .log): $count failed"
      grep -A 4 -E ': Failure$|^unknown file: Failure' "$log" | head -n 20 | cut -c 1-200 >&3
      grep '^\[  FAILED  \] .* ms)$' "$log" | head -n 12 | cut -c 1-160 >&3
    fi
    if grep -q '^broke off: ' "$log"; then
      broken=$((broken + $(grep -c '^broke off: ' "$log")))
      say "  $(basename "$log" .log):"
      grep -E '^broke off: |^=========|terminate called|what\(\)' "$log" | head -n 16 | cut -c 1-180 >&3
    fi
    if ! tail -n 1 "$log" | grep -q '^exit code '; then
      unfinished=$((unfinished + 1))
      say "  $(basename "$log" .log): not finished, in $(sed -n 's/^\[ RUN      \] //p' "$log" | tail -n 1)"
    fi
  done
  rm -rf "$1"
  say "$2: $passed passed, $failed failed, $skipped skipped, $broken broke off, $unfinished suites not finished"
  # All are skipped where the GPU cannot be used.
  [ $((failed + broken + unfinished)) = 0 ] && [ "$passed" -gt "$([ -n "${FILTER-}" ] && echo 0 || echo "$skipped")" ]
}

# When the stage's time is over, what there is by then is told.
at_the_limit() {
  local told
  told=$(printf 'conclude %q %q; exit 124' "$1" "$2")
  # shellcheck disable=SC2064
  trap "$told" TERM
}

unit_tests() { # program, name
  local program=$1 logs suite
  if [ ! -x "$program" ]; then
    say "$2: there is no $program: build it first"
    return 1
  fi
  logs=$(mktemp -d)
  at_the_limit "$logs" "$2"
  if [ -n "${FILTER-}" ]; then
    run_suite "$logs/filtered.log" "$program" "$FILTER"
  else
    suites_of "$program" | grep -Ev "^($alone)$" |
      xargs -P 4 -I SUITE bash -c 'run_suite "$1/$(tr / - <<<"$3")log" "$2" "$3*"' _ "$logs" "$program" SUITE
    for suite in $(suites_of "$program" | grep -E "^($alone)$"); do
      run_suite "$logs/${suite}log" "$program" "$suite*"
    done
  fi
  conclude "$logs" "$2"
}
stage_tests() { unit_tests build/gpu/native/test/chatglm_cuda_tests 'unit tests'; }
stage_older() {
  local arch status=0
  # What the driver makes of the PTX is kept from one process to the next.
  export CUDA_CACHE_PATH=$root/build/gpu-ptx-cache CUDA_CACHE_MAXSIZE=4294967296
  for arch in "${older_archs[@]}"; do
    unit_tests "build/gpu-$arch/native/test/chatglm_cuda_tests" "unit tests, PTX of $arch" || status=1
  done
  return $status
}
stage_sanitize() {
  local program=build/gpu/native/test/chatglm_cuda_tests logs tool suites
  if [ ! -x $program ]; then
    say "sanitize: there is no $program: build it first"
    return 1
  fi
  suite_seconds=240 quiet_seconds=200
  logs=$(mktemp -d)
  at_the_limit "$logs" 'unit tests under compute-sanitizer'
  if [ -n "${FILTER-}" ]; then
    suites=$FILTER
  else
    suites=$(suites_of $program | grep -Ev "$heavy" | sed 's/$/*/' && echo "$heavy_sample")
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    while read -r suite; do echo "$tool $suite"; done <<<"$suites"
  done | xargs -P 8 -L 1 bash -c 'name=${2%%.*}
    run_suite "$0/$1-$(tr -c "A-Za-z0-9\n" - <<<"$name").log" '"$program"' "$2" \
      compute-sanitizer --tool "$1" --error-exitcode 99 --print-limit 20' "$logs"
  conclude "$logs" 'unit tests under compute-sanitizer'
}

# --- The package.

stage_facade() {
  if ! command -v node >/dev/null || [ ! -d node_modules/jest ] || [ ! -d dist ] || [ ! -f build/Release/chatglm.node ]; then
    say 'facade: needs Node, node_modules/, dist/ (npm run build:ts) and build/Release/chatglm.node'
    return 1
  fi
  local files status
  # The validators' libraries and a pseudo-terminal have nothing to do with a device, and are not carried.
  mapfile -t files < <(grep -l 'support/device' test/*.test.ts | grep -vE '/(tools|chat-piped)\.test' && ls test/device.test.ts)
  CHATGLM_TEST_DEVICE=cuda node node_modules/jest/bin/jest.js --ci --maxWorkers=$((cores < 8 ? cores : 8)) \
    --json "--outputFile=build/gpu-facade.json" "${files[@]}" 2>&1
  status=$?
  node -e '
    const report = JSON.parse(require("node:fs").readFileSync("build/gpu-facade.json", "utf8"));
    let told = 0;
    for (const file of report.testResults) {
      const failed = file.assertionResults.filter((test) => test.status === "failed");
      for (const test of failed) {
        if (++told > 15) continue; // the log has them all
        const message = (test.failureMessages[0] ?? "").replace(/\u001b\[[0-9;]*m/g, "").split("\n");
        console.log(`  ${require("node:path").basename(file.name)}: ${test.fullName}`);
        console.log(`    ${message.slice(0, 4).join(" ").slice(0, 240)}`);
      }
      if (file.status === "failed" && failed.length === 0) console.log(`  ${file.name}: ${file.message.slice(0, 600)}`);
    }
    console.log(`facade: ${report.numPassedTests} passed, ${report.numFailedTests} failed, ${report.numPendingTests} skipped`);
  ' >&3
  return $status
}
stage_bench() {
  local program=build/gpu/native/test/chatglm_cuda_bench arguments
  if [ ! -x $program ]; then
    say "bench: there is no $program: build it first"
    return 1
  fi
  read -ra arguments <<<"${BENCH-}"
  $program --out "$OUT/bench.tsv" "${arguments[@]}" 2>&1 | both
}
stage_cli() {
  node dist/cli/main.js bench --device cuda --shape 6b --type q4_0 --prompt 512,2048,8192 --depth 0,2048,8192 \
    --batch 1,8,64 --gen 64 2>&1 | both
}

stage_sampling() {
  node benchmark/sampling.mjs --device cuda --streams 1,8,64,256 --prompt 128 --tokens 128 --rounds 5 2>&1 | both
}
unpack_tokenizer() {
  node -e "fs.writeFileSync('build/tokenizer.model', zlib.brotliDecompressSync(fs.readFileSync('test/fixtures/tokenizer/tokenizer.model.br')))"
}
stage_structured() {
  unpack_tokenizer &&
    node benchmark/structured.mjs --shape 6b --tokenizer build/tokenizer.model --device cuda --streams 1,64,256 \
      --tokens 128 --rounds 5 2>&1 | both
}
stage_engine() {
  build/gpu/native/test/chatglm_cuda_engine_bench --tokens 256 --rounds 5 2>&1 | both
}
stage_server() {
  unpack_tokenizer &&
    node benchmark/server.mjs --shape 6b --tokenizer build/tokenizer.model --device cuda --streams 64,256 --tokens 512 \
      --rounds 4 --idle 2000 2>&1 | both
}
stage_soak() {
  node scripts/soak.mjs --device cuda --minutes 1 2>&1 | both
}

# --- One stage, in a process of its own with a limit of time; or all that were asked for.

if [ "${1-}" = --stage ]; then
  provide
  "stage_$2"
  exit
fi

stages=build,tests,facade,bench
while [ $# -gt 0 ]; do
  case "$1" in
    --stages) stages=${2-} ;;
    --filter) export FILTER=${2-} ;;
    --bench) export BENCH=${2-} ;;
    *)
      sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//'
      [ "$1" = --help ] && exit 0
      exit 2
      ;;
  esac
  shift 2 || exit 2
done
if [ "$stages" = all ]; then stages=build,tests,facade,bench,cli,sanitize,older-build,older; fi

nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi here'
summary=()
failed=0
for stage in ${stages//,/ }; do
  name=${stage%%:*}
  if [ -z "${limits[$name]-}" ]; then
    echo "no such stage: $name" >&2
    exit 2
  fi
  limit=${limits[$name]}
  if [ "$stage" != "$name" ]; then limit=${stage#*:}; fi
  echo "--- $name"
  began=$SECONDS
  timeout -k 10 "$limit" bash "$root/scripts/gpu-test.sh" --stage "$name" 3>&1 >"$OUT/$name.log" 2>&1
  status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="BROKEN OFF after its $limit s" ;;
    *) result=FAILED ;;
  esac
  if [ $status -ne 0 ]; then
    failed=1
    if [[ $name = *build ]]; then
      grep -E '[: ](error|fatal)|FAILED' "$OUT/$name.log" | head -n 25 | cut -c 1-240
      tail -n 8 "$OUT/$name.log" | cut -c 1-240
    fi
  fi
  summary+=("$(printf '%-12s %s, %d s' "$name" "$result" $((SECONDS - began)))")
done
echo '--- summary'
printf '%s\n' "${summary[@]}"
exit $failed

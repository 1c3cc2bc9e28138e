#!/usr/bin/env bash
# The native unit tests under AddressSanitizer with UndefinedBehaviorSanitizer and under ThreadSanitizer, and a run of the
# addon under the first two. Needs g++, GoogleTest's sources (libgtest-dev) and dist/. Ends with "sanitizers: clean".
set -euo pipefail
cd "$(dirname "$0")/.."

generator=()
if command -v ninja >/dev/null; then generator=(-G Ninja); fi
log=build/sanitize.log what=sanitizers
. scripts/quietly.sh

export UBSAN_OPTIONS=print_stacktrace=1
export CHATGLM_CUDA=OFF # GPU code has compute-sanitizer
unit_tests() { # directory, -fsanitize=, options, which tests
  local dir=build/$1
  [ -f "$dir/CMakeCache.txt" ] ||
    quietly cmake -S . -B "$dir" "${generator[@]}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCHATGLM_TESTS=ON \
      "-DCHATGLM_SANITIZE=$2" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g1"
  quietly cmake --build "$dir" --parallel "$(nproc)" --target chatglm_tests
  # A process for each core: a thousand starts of an instrumented one, one a test, take longer than the tests.
  local shards i pids=()
  shards=$(nproc)
  rm -f "$dir"/shard-*.log
  for ((i = 0; i < shards; i++)); do
    env "$3" GTEST_TOTAL_SHARDS="$shards" GTEST_SHARD_INDEX="$i" "$dir/native/test/chatglm_tests" --gtest_brief=1 \
      "--gtest_filter=$4" >"$dir/shard-$i.log" 2>&1 &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    if ! wait "${pids[$i]}"; then
      tail -n 200 "$dir/shard-$i.log" >&2
      echo "sanitizers: failed: unit tests under $2"
      exit 1
    fi
  done
  local passed
  passed=$(cat "$dir"/shard-*.log | grep -oE '[0-9]+ tests?\.$' | awk '{ sum += $1 } END { print sum }')
  echo "sanitizers: $passed unit tests under $2 passed"
}
unit_tests tests-asan address,undefined ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1 '*'
unit_tests tests-tsan thread TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
  'Engine*:*Forward*:*ThreadPool*:LoadTest.*es*' # those with threads

# The addon lies where node-gyp-build looks for it: <dir>/build/Release.
addon=$PWD/build/asan
quietly npx cmake-js build --out build/asan/cmake --config Release --CDCHATGLM_SANITIZE=address,undefined \
  "--CDCHATGLM_OUT=$addon/build" "--CDCMAKE_CXX_FLAGS_RELEASE=-O2 -g1"
quietly env NODE_CHATGLM_PREBUILD="$addon" ASAN_OPTIONS=detect_leaks=0 \
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" node scripts/sanitize-addon.cjs
grep -q '^addon: done' "$log" || { cat "$log" >&2; echo 'sanitizers: failed: the addon run did not reach its end'; exit 1; }
echo "sanitizers: addon under address,undefined: done"
echo "sanitizers: clean"

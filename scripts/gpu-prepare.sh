#!/usr/bin/env bash
# Fills .gpu/ (not in git) with what a machine that has a GPU and CUDA, but neither Node nor a network, lacks for
# scripts/gpu-test.sh: Node itself, the modules that the tests and the server need, dist/ and server/dist/, GoogleTest's
# sources, and the programs that `scripts/gpu-test.sh --stages build` or older-build have left in build/ here. Copy the
# repository with .gpu/ there.
# Needs: npm ci, npm run build:ts, xz, GoogleTest's sources (Debian, Ubuntu: libgtest-dev).
#
#   scripts/gpu-prepare.sh [--programs]    with --programs: only these anew
set -euo pipefail
cd "$(dirname "$0")/.."
most_mib=29 # of all files together: what such a machine's copy has room for beside the repository

die() {
  echo "gpu-prepare: $*" >&2
  exit 1
}
only_programs=0
case "${1-}" in
  '') ;;
  --programs) only_programs=1 ;;
  *) die "no such option: $1" ;;
esac

mkdir -p .gpu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pack() { # archive, then tar's arguments
  local archive=.gpu/$1.tar.xz
  shift
  tar --create --sort=name --owner=0 --group=0 --mtime=@0 "$@" | xz -9e -T0 >"$archive.part"
  mv "$archive.part" "$archive"
}

pack_node() {
  local node stamp
  node=$(node -p process.execPath)
  stamp=$(node -p 'process.version + process.arch')
  # Minutes of work that one version of Node takes once.
  if [ -f .gpu/node.xz ] && [ "$(cat .gpu/node.version 2>/dev/null)" = "$stamp" ]; then return; fi
  strip -o "$scratch/node" "$node" 2>/dev/null && [ "$("$scratch/node" -p 6*7)" = 42 ] || cp "$node" "$scratch/node"
  local filter=()
  if [ "$(uname -m)" = x86_64 ]; then filter=(--x86); fi
  xz "${filter[@]}" --lzma2=preset=9e,dict=96MiB -c "$scratch/node" >.gpu/node.xz.part
  mv .gpu/node.xz.part .gpu/node.xz
  echo "$stamp" >.gpu/node.version
}

pack_programs() {
  local file programs=()
  for file in build/gpu*/native/test/chatglm_cuda_tests build/gpu*/native/test/chatglm_cuda_bench \
    build/gpu*/native/test/chatglm_cuda_engine_bench \
    build/Release/chatglm.node build/Release/libchatglm-cuda.so; do
    if [ ! -f "$file" ]; then continue; fi
    mkdir -p "$scratch/programs/$(dirname "$file")"
    strip -o "$scratch/programs/$file" "$file"
    programs+=("$file")
  done
  if [ ${#programs[@]} -gt 0 ]; then
    pack programs -C "$scratch/programs" "${programs[@]}"
  else
    rm -f .gpu/programs.tar.xz
  fi
}

pack_programs
if [ $only_programs = 0 ]; then
  [ -d node_modules/jest ] || die 'no node_modules: npm ci'
  [ -f dist/index.js ] && [ -f server/dist/index.js ] || die 'no dist/ or server/dist/: npm run build:ts'
  [ -d /usr/src/googletest ] || die 'no /usr/src/googletest: install libgtest-dev'
  pack_node
  node scripts/gpu-modules.cjs >"$scratch/modules"
  pack modules --exclude='*.map' --exclude='*.d.ts' --exclude='*.d.mts' --exclude='*.d.cts' --exclude='*.md' \
    --exclude='*.flow' --exclude='node_modules/*/test' --exclude='node_modules/*/docs' --files-from="$scratch/modules"
  # The page is not measured there.
  pack dist --exclude=server/dist/web dist server/dist
  part=googletest/googletest
  pack googletest -C /usr/src googletest/CMakeLists.txt $part/CMakeLists.txt $part/cmake $part/include $part/src
fi

du -b .gpu/*.xz | awk '{ printf "%8.2f MiB  %s\n", $1 / 1048576, $2 }'
total=$(du -bc .gpu/*.xz | tail -n 1 | cut -f 1)
awk -v total="$total" 'BEGIN { printf "%8.2f MiB  in all\n", total / 1048576 }'
[ "$total" -le $((most_mib * 1048576)) ] || die "more than $most_mib MiB"

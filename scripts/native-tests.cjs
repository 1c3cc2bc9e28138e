'use strict';
// Builds and runs the unit tests of native/ and cuda/ (CTest, GoogleTest) in the folder that node-gyp.cjs builds the addon
// in: what both need, the GPU's kernels above all, is compiled once. Exit code 77: GoogleTest is not installed.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const build = path.join(root, 'build', `cmake-${process.platform}-${process.arch}-Release`);
const jobs = String(os.availableParallelism());

function run(command, args) {
  const r = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (r.error) {
    process.stderr.write(`${command}: ${r.error.message}\n`);
    process.exit(1);
  }
  return { ok: r.status === 0, output: r.stdout + r.stderr };
}

function fail(what, output) {
  process.stderr.write(`${output}\n${what} failed\n`);
  process.stdout.write('native: 0 passed, 1 failed\n');
  process.exit(1);
}

if (!fs.existsSync(path.join(build, 'CMakeCache.txt'))) {
  const addon = run(process.execPath, [path.join(__dirname, 'node-gyp.cjs')]);
  if (!addon.ok) fail('building the addon', addon.output);
}
const configured = run('cmake', ['-S', '.', '-B', build, '-DCHATGLM_TESTS=ON']);
if (!configured.ok) fail('configuring the native tests', configured.output);
if (/No GoogleTest/.test(configured.output)) {
  process.stderr.write('native tests: GoogleTest is not installed (Debian, Ubuntu: apt-get install libgtest-dev)\n');
  process.exit(77);
}
const built = run('cmake', ['--build', build, '--parallel', jobs, '--target', 'native_tests']);
if (!built.ok) fail('building the native tests', built.output);

const tested = run('ctest', ['--test-dir', build, '--parallel', jobs, '--output-on-failure', '--no-tests=error']);
const total = Number(/tests failed out of (\d+)/.exec(tested.output)?.[1] ?? 0);
const failed = Number(/(\d+) tests? failed out of/.exec(tested.output)?.[1] ?? (tested.ok ? 0 : 1));
const skips = tested.output.match(/^.*\*\*\*Skipped/gm) ?? [];
const needGpu = skips.filter((line) => / cuda\./.test(line)).length;
if (!tested.ok) process.stderr.write(tested.output.replace(/^.*(?:Start +\d+:| Passed |\*\*\*Skipped).*\n/gm, ''));
if (needGpu) process.stdout.write(`native: ${needGpu} skipped, which need a GPU\n`);
if (skips.length > needGpu) {
  process.stdout.write(`native: ${skips.length - needGpu} skipped, whose instructions this CPU lacks\n`);
}
process.stdout.write(`native: ${Math.max(0, total - failed - skips.length)} passed, ${failed} failed\n`);
process.exit(tested.ok ? 0 : 1);

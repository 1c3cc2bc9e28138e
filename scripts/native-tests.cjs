'use strict';
// Builds and runs the unit tests of native/ (CTest, GoogleTest) in build/tests. Exit code 77: GoogleTest is not installed.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const build = path.join(root, 'build', 'tests');
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

const ninja = spawnSync('ninja', ['--version']).status === 0;
const known = fs.existsSync(path.join(build, 'CMakeCache.txt')); // has its generator already
const generator = ninja && !known ? ['-G', 'Ninja'] : [];
const configured = run('cmake', ['-S', '.', '-B', build, ...generator, '-DCHATGLM_TESTS=ON']);
if (!configured.ok) {
  if (/Could NOT find GTest|GTestConfig\.cmake/.test(configured.output)) {
    process.stderr.write('native tests: GoogleTest is not installed (Debian, Ubuntu: apt-get install libgtest-dev)\n');
    process.exit(77);
  }
  fail('configuring the native tests', configured.output);
}
const built = run('cmake', ['--build', build, '--parallel', jobs]);
if (!built.ok) fail('building the native tests', built.output);

const tested = run('ctest', ['--test-dir', build, '--parallel', jobs, '--output-on-failure', '--no-tests=error']);
const total = Number(/tests failed out of (\d+)/.exec(tested.output)?.[1] ?? 0);
const failed = Number(/(\d+) tests? failed out of/.exec(tested.output)?.[1] ?? (tested.ok ? 0 : 1));
const skipped = (tested.output.match(/\*\*\*Skipped/g) ?? []).length;
if (!tested.ok) process.stderr.write(tested.output.replace(/^.*(?:Start +\d+:| Passed ).*\n/gm, ''));
if (skipped) process.stdout.write(`native: ${skipped} skipped, whose instructions this CPU lacks\n`);
process.stdout.write(`native: ${Math.max(0, total - failed - skipped)} passed, ${failed} failed\n`);
process.exit(tested.ok ? 0 : 1);

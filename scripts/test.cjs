'use strict';
// Builds and runs every test: TypeScript's through the package as users get it, then the native unit tests. Arguments go
// to Jest, and then only Jest runs. The last line is plain: N passed, N failed.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const args = process.argv.slice(2);

function node(script, scriptArgs, options = {}) {
  return spawnSync(process.execPath, [script, ...scriptArgs], { cwd: root, stdio: 'inherit', ...options });
}

function bin(name) {
  const { bin: bins, name: packageName } = require(`${name}/package.json`);
  const file = typeof bins === 'string' ? bins : bins[packageName];
  return path.join(path.dirname(require.resolve(`${name}/package.json`)), file);
}

if (node(path.join(__dirname, 'build-ts.cjs'), []).status !== 0) process.exit(1);
if (node(path.join(__dirname, 'node-gyp.cjs'), [], { stdio: ['inherit', 'ignore', 'inherit'] }).status !== 0)
  process.exit(1);

const report = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'node-chatglm-report-')), 'jest.json');
const jest = node(bin('jest'), ['--json', `--outputFile=${report}`, ...args], {
  stdio: ['inherit', 'ignore', 'inherit'],
});
let passed = 0;
let failed = 0;
try {
  const { numPassedTests, numFailedTests, numRuntimeErrorTestSuites } = JSON.parse(fs.readFileSync(report, 'utf8'));
  passed += numPassedTests;
  failed += numFailedTests + numRuntimeErrorTestSuites;
} catch {
  failed += 1; // Jest did not come as far as to write its report.
}
let ok = jest.status === 0 && failed === 0;

if (args.length === 0) {
  const native = node(path.join(__dirname, 'native-tests.cjs'), [], {
    stdio: ['inherit', 'pipe', 'inherit'],
    encoding: 'utf8',
  });
  process.stdout.write(native.stdout);
  const counts = /^native: (\d+) passed, (\d+) failed$/m.exec(native.stdout);
  passed += Number(counts?.[1] ?? 0);
  failed += Number(counts?.[2] ?? (native.status === 77 ? 0 : 1));
  ok = ok && (native.status === 0 || native.status === 77);
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(ok ? 0 : 1);

'use strict';
// Compiles lib/ to dist/, and server/ where it is there, and writes the ES module entry, which gives the same single instance that require() gets. The
// entry names every export: `export *` would pass `__esModule` on as one of them.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

// npm runs scripts of a link to this package too, which the server's dependency is: scripts/install.cjs.
if (process.env.npm_lifecycle_event === 'prepare' && process.env.npm_package_resolved === 'null') process.exit(0);

const root = path.join(__dirname, '..');
const dist = path.join(root, 'dist');
const typescript = path.dirname(require.resolve('typescript/package.json'));
const tsc = path.join(typescript, require('typescript/package.json').bin.tsc);
const { status } = spawnSync(process.execPath, [tsc, '-p', root], { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);

const names = Object.keys(require(path.join(dist, 'index.js'))).sort();
fs.writeFileSync(
  path.join(dist, 'esm.mjs'),
  `export {\n${names.map((n) => `  ${n},\n`).join('')}} from './index.js';\n`,
);
fs.writeFileSync(path.join(dist, 'esm.d.mts'), "export * from './index.js';\n");

// The package that users get has no server: the server is a package of its own.
if (fs.existsSync(path.join(root, 'server', 'build.cjs'))) {
  const server = spawnSync(process.execPath, [path.join(root, 'server', 'build.cjs')], { cwd: root, stdio: 'inherit' });
  if (server.status !== 0) process.exit(server.status ?? 1);
}

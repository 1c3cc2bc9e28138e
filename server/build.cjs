'use strict';
// Compiles src/ to dist/ and bundles the web page of web/ to dist/web/.
const { spawnSync } = require('node:child_process');
const path = require('node:path');

const typescript = path.dirname(require.resolve('typescript/package.json'));
const tsc = path.join(typescript, require('typescript/package.json').bin.tsc);
const { status } = spawnSync(process.execPath, [tsc, '-p', __dirname], { stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);

require('./web/build.cjs')
  .build(path.join(__dirname, 'dist', 'web'))
  .catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });

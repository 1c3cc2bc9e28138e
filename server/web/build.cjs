'use strict';
// Bundles the page: index.html, and scripts and styles that it names.
const fs = require('node:fs');
const path = require('node:path');
const { build } = require('esbuild');

exports.build = async (outdir) => {
  fs.rmSync(outdir, { recursive: true, force: true });
  fs.mkdirSync(outdir, { recursive: true });
  await build({
    entryPoints: [path.join(__dirname, 'src', 'main.tsx')],
    outdir,
    bundle: true,
    format: 'esm',
    splitting: true,
    minify: true,
    target: 'es2022',
    jsx: 'automatic',
    jsxImportSource: 'preact',
    logLevel: 'warning',
  });
  fs.copyFileSync(path.join(__dirname, 'index.html'), path.join(outdir, 'index.html'));
};

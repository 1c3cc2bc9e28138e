'use strict';
// Prints the folders of node_modules that the tests, the addon's build and the server need when they run, one a line: what
// scripts/gpu-prepare.sh carries to a machine without npm. Types and what only other systems run are left out.
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const wanted = [
  'jest',
  'babel-jest',
  '@babel/preset-typescript',
  '@babel/plugin-transform-modules-commonjs',
  'node-gyp-build',
  '@eslint-community/regexpp',
  '@cfworker/json-schema',
  'ajv',
  'ajv-formats',
  'zod',
  'node-addon-api',
  'node-api-headers',
];
// The server imports this package by its name: a link, which comes as one. Queues of batches are not run there.
const server = path.join(root, 'server');
const leftOut = ['node-chatglm', 'bullmq'];
const needless = /^(@types\/.*|typescript|node-notifier)$/;
const folders = new Set();

/** Where Node finds a package that `from` requires, or undefined. */
function find(name, from) {
  for (let folder = from; ; folder = path.dirname(folder)) {
    const found = path.join(folder, 'node_modules', name);
    if (fs.existsSync(path.join(found, 'package.json'))) return found;
    if (folder === root || folder === path.dirname(folder)) return undefined;
  }
}

function add(name, from, mustExist) {
  if (needless.test(name)) return;
  const folder = find(name, from);
  if (folder === undefined) {
    if (mustExist) throw new Error(`${name}, which ${path.relative(root, from) || 'this'} needs, is not installed`);
    return;
  }
  if (folders.has(folder)) return;
  const description = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
  const { libc, os, cpu } = description;
  const glibc = process.report.getReport().header.glibcVersionRuntime !== undefined ? 'glibc' : 'musl';
  if (libc && !libc.includes(glibc)) return;
  if (os && !os.includes(process.platform)) return;
  if (cpu && !cpu.includes(process.arch)) return;
  folders.add(folder);
  const { dependencies = {}, optionalDependencies = {}, peerDependencies = {} } = description;
  for (const each of Object.keys(dependencies)) add(each, folder, !(each in optionalDependencies));
  for (const each of Object.keys({ ...optionalDependencies, ...peerDependencies })) add(each, folder, false);
}

for (const name of wanted) add(name, root, true);
const { dependencies } = JSON.parse(fs.readFileSync(path.join(server, 'package.json'), 'utf8'));
for (const name of Object.keys(dependencies)) if (!leftOut.includes(name)) add(name, server, true);
// Packages that lie in another one's folder come with it.
const outer = [...folders].filter((folder) => ![...folders].some((other) => folder.startsWith(other + path.sep)));
const links = ['node_modules/node-chatglm'];
process.stdout.write(`${[...outer.map((folder) => path.relative(root, folder)), ...links].join('\n')}\n`);

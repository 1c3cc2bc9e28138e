'use strict';
// Fails on an import that points up, or on a circle of imports: in lib/ by the order of its rooms, in server/src by the
// order of its own, in native/ and cuda/ by the order of theirs; and on the name of a family outside of lib/families/. docs/architecture.md says what each room is
// for; a new room needs a place in an order here.
const fs = require('node:fs');
const path = require('node:path');
const { execFileSync } = require('node:child_process');

const root = path.join(__dirname, '..');

/** Each room may import itself and the rooms before it. Rooms of one line know nothing of each other. */
const ORDERS = {
  lib: [
    ['common'],
    ['addon'],
    ['families'],
    ['tokenizer'],
    ['checkpoint'],
    ['structured'],
    ['generation'],
    ['tools', 'interpreter'],
    ['chat'],
    ['model'],
    [''],
  ],
  // Of values: types say what the parts of a server share, such as its context, and may point anywhere. Files that lie
  // in no folder are rooms of their own.
  'server/src': [
    ['checks', 'version', 'lifecycle', 'context'],
    ['http'],
    ['access', 'observe'],
    ['models'],
    ['chat'],
    ['anthropic'],
    ['openai'],
    ['batch'],
    ['options'],
    ['web'],
    ['server'],
    ['mount'],
    ['index'],
    ['cli'],
  ],
  native: [
    ['base'],
    ['text', 'model'],
    ['engine'],
    ['cpu/kernels'],
    ['cpu'],
    ['cuda'],
    ['addon'],
    ['test'],
    ['benchmark'],
  ],
};
/** Rooms above the public API. They import the root's index.ts and themselves, and nothing else of lib/. */
const ABOVE_THE_API = ['cli'];

const FOLDERS = ['lib', 'server/src', 'native', 'cuda', 'benchmark'];
const files = execFileSync('git', ['ls-files', '-co', '--exclude-standard', ...FOLDERS], {
  cwd: root,
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => /\.(ts|mts|cc|h|cu|cuh)$/.test(file) && fs.existsSync(path.join(root, file)));
const known = new Set(files);
const problems = [];

/** The files of this project that `file` imports. */
function importsOf(file) {
  const text = fs.readFileSync(path.join(root, file), 'utf8');
  const folder = path.posix.dirname(file);
  if (file.startsWith('server/src/')) {
    const specifiers = [...text.matchAll(/\b(?:import|export)\b(?! type\b)[^;']*?(?:from|\()\s*'(\.[^']*)'/g)];
    return specifiers.map(([, it]) => path.posix.normalize(`${folder}/${it}`).replace(/\.js$/, '.ts'));
  }
  if (file.startsWith('lib/')) {
    const specifiers = [...text.matchAll(/(?:\bfrom|\bimport\(|\brequire\()\s*'(\.[^']*)'/g)].map(([, it]) => it);
    return specifiers.map((it) => path.posix.normalize(`${folder}/${it}`).replace(/\.js$/, '.ts'));
  }
  const included = [...text.matchAll(/^#include "([^"]+)"/gm)].map(([, it]) => it);
  return included.map((it) => {
    const found = [`native/${it}`, it, path.posix.normalize(`${folder}/${it}`)].find((candidate) =>
      known.has(candidate),
    );
    if (found === undefined) problems.push(`${file}: no file ${it}; includes begin at native/ or at the root`);
    return found ?? file;
  });
}

function roomOf(file) {
  const [top, ...rest] = file.split('/');
  if (top === 'server') return rest[1].replace(/\.ts$/, '');
  if (top === 'lib') return rest.length > 1 ? rest[0] : '';
  if (top !== 'native') return top;
  return rest[0] === 'cpu' && rest[1] === 'kernels' ? 'cpu/kernels' : rest[0];
}

function checkArrow(file, target) {
  const [from, to] = [roomOf(file), roomOf(target)];
  if (from === to) return;
  const isLib = file.startsWith('lib/');
  if (isLib && ABOVE_THE_API.includes(from)) {
    if (target !== 'lib/index.ts') problems.push(`${file} imports ${target}: ${from}/ knows the public API only`);
    return;
  }
  const tree = ['lib', 'server/src'].find((each) => file.startsWith(`${each}/`)) ?? 'native';
  if (tree === 'server/src' && !target.startsWith(tree)) {
    problems.push(`${file} imports ${target}: the server knows the package node-chatglm only`);
    return;
  }
  const order = ORDERS[tree];
  const rank = (room) => order.findIndex((line) => line.includes(room));
  for (const [room, where] of [
    [from, file],
    [to, target],
  ]) {
    if (rank(room) < 0) problems.push(`${where}: the room ${room}/ has no place in scripts/check-layers.cjs`);
  }
  if (rank(to) >= rank(from)) problems.push(`${file} imports ${target}, which points up: ${to}/ is not below ${from}/`);
}

const graph = new Map(files.map((file) => [file, importsOf(file)]));
for (const [file, targets] of graph) for (const target of targets) checkArrow(file, target);

/** Depth first; a file that is met again while it is open closes a circle. */
const state = new Map();
function visit(file, trail) {
  if (state.get(file) === 'done') return;
  if (state.get(file) === 'open') {
    problems.push(`a circle: ${[...trail.slice(trail.indexOf(file)), file].join(' -> ')}`);
    return;
  }
  state.set(file, 'open');
  for (const target of graph.get(file) ?? []) if (target !== file) visit(target, [...trail, file]);
  state.set(file, 'done');
}
for (const file of files) visit(file, []);

// Whoever needs to know how a family differs reads a field of the interface Family: a literal of a family's name elsewhere
// is a comparison, or a default, that a new family would have to find.
const FAMILIES = 'lib/families/';
const familyNames = files
  .filter((file) => file.startsWith(FAMILIES))
  .flatMap((file) => [...fs.readFileSync(path.join(root, file), 'utf8').matchAll(/^ {2}name: '(\w+)',$/gm)])
  .map(([, name]) => name);
if (familyNames.length === 0) problems.push(`${FAMILIES}: no file has the line \`name: '…',\` of a family`);
const literal = new RegExp(`(['"\`])(?:${familyNames.join('|')})\\1`);
for (const file of files) {
  if (file.startsWith(FAMILIES) || /^(native\/test|benchmark)\//.test(file)) continue;
  const lines = fs.readFileSync(path.join(root, file), 'utf8').split('\n');
  for (const [index, line] of lines.entries()) {
    const code = line.replace(/^\s*(\/\/|\/?\*).*/, ''); // not in comments
    if (literal.test(code)) problems.push(`${file}:${index + 1} names a family: that belongs into ${FAMILIES}`);
  }
}

for (const problem of new Set(problems)) console.error(problem);
console.log(`${files.length} files, ${problems.length === 0 ? 'no import points up, no circle' : 'see above'}`);
process.exit(problems.length === 0 ? 0 : 1);

'use strict';
// Fails where documentation is missing or no longer true:
//   - every export of lib/index.ts and server/src/index.ts has a docstring, and so have the public members of its classes and the fields of its
//     interfaces; functions, classes and methods have an @example in it;
//   - those examples, and the blocks of JavaScript and TypeScript in all Markdown files, compile against the types;
//   - files that Markdown links to, and those that the pages for developers name, exist.
// Reads what tsc has written, *.d.ts (npm run build:ts) as text: TypeScript's compiler has no API for JavaScript any more.
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
/** The packages: where their sources are, and what tsc makes of them. The server is a package of its own. */
const PACKAGES = [
  { name: 'node-chatglm', sources: 'lib', dist: path.join(root, 'dist') },
  { name: 'node-chatglm-server', sources: 'server/src', dist: path.join(root, 'server', 'dist') },
];
const scratch = path.join(root, 'build', 'check-docs');
/** Pages whose `paths/in/backticks` must exist. A changelog names files that are gone. */
const PAGES_FOR_DEVELOPERS = ['CONTRIBUTING.md', 'docs/architecture.md'];
const problems = [];

// --- Declarations.

/** The comment that ends right before line `index`, without its stars; undefined where there is none. */
function docstringBefore(lines, index) {
  if (!lines[index - 1]?.trimEnd().endsWith('*/')) return undefined;
  let first = index - 1;
  while (first > 0 && !lines[first].trimStart().startsWith('/**')) first--;
  return lines
    .slice(first, index)
    .map((line) => line.replace(/^\s*(\/\*\*|\*(?!\/))? ?/, '').replace(/\s*\*\/\s*$/, ''))
    .join('\n')
    .trim();
}

/** Where the declaration of `name` begins in a file that tsc has written. */
function findDeclaration(lines, name) {
  const kinds = 'function|abstract class|class|interface|type|const';
  const pattern = new RegExp(`^export (?:declare )?(${kinds}) ${name.replaceAll('$', '\\$')}\\b`);
  for (const [index, line] of lines.entries()) {
    const kind = pattern.exec(line)?.[1];
    if (kind !== undefined) return { index, kind: kind.replace('abstract ', '') };
  }
  return undefined;
}

/** Every docstring that there is to check: { what, file, doc, needsExample }. */
const documented = [];
const seen = new Set();

function readExport(file, name) {
  const key = `${file} ${name}`;
  if (seen.has(key)) return;
  seen.add(key);
  const lines = fs.readFileSync(file, 'utf8').split('\n');
  const found = findDeclaration(lines, name);
  if (found === undefined) {
    problems.push(`${path.relative(root, file)}: no declaration of ${name} as tsc writes one`);
    return;
  }
  const { index, kind } = found;
  const needsExample = kind === 'function' || kind === 'class';
  documented.push({ what: name, file, doc: docstringBefore(lines, index), needsExample });
  if (kind === 'class' || (kind === 'interface' && !lines[index].endsWith('}'))) readMembers(file, lines, index, name);
}

/** Public members of a class, those of its base classes included, or the fields of an interface. */
function readMembers(file, lines, first, name) {
  const isClass = / class /.test(lines[first]);
  for (let index = first + 1; lines[index] !== '}'; index++) {
    const member = /^ {4}(?!\*|\/)(.*)$/.exec(lines[index])?.[1];
    if (member === undefined || /^(private|protected|#private|\s|\}|\)|constructor\()/.test(member)) continue;
    const [, signature, isMethod] = /^(?:readonly |get |set |abstract |static )*([^(:;?]+)\??(\()?/.exec(member) ?? [];
    if (signature === undefined) {
      problems.push(`${path.relative(root, file)}: what is "${member}"?`);
      continue;
    }
    const isAccessor = /^(get|set) /.test(member);
    // The docstring of a pair of accessors stands before the first of them.
    const doc = docstringBefore(lines, index);
    if (member.startsWith('set ') && doc === undefined) continue;
    documented.push({
      what: `${name}.${signature}`,
      file,
      doc,
      needsExample: isClass && isMethod !== undefined && !isAccessor,
    });
  }
  // The last `extends`: one before it belongs to a type parameter.
  const base = /^export declare (?:abstract )?class .*\bextends (\w+)/.exec(lines[first])?.[1];
  if (base === undefined || base === 'Error') return;
  const from = new RegExp(`^import .*\\b${base}\\b.* from '(.*)\\.js';`, 'm').exec(lines.join('\n'))?.[1];
  const baseFile = from === undefined ? file : path.resolve(path.dirname(file), `${from}.d.ts`);
  const baseLines = fs.readFileSync(baseFile, 'utf8').split('\n');
  const found = findDeclaration(baseLines, base);
  if (found === undefined) problems.push(`${path.relative(root, baseFile)}: no class ${base}`);
  else if (!seen.has(`${baseFile} ${base}`)) {
    seen.add(`${baseFile} ${base}`);
    readMembers(baseFile, baseLines, found.index, base);
  }
}

const packageOf = new Map(); // of every export
for (const { name, sources, dist } of PACKAGES) {
  const index = fs.readFileSync(path.join(dist, 'index.d.ts'), 'utf8');
  const statements = [...index.matchAll(/^export (type )?\{([^}]*)\} from '(.*)\.js';$/gm)];
  if (statements.length === 0 || /^export (?!type \{|\{)/m.test(index)) {
    problems.push(`every line of ${sources}/index.ts should be \`export { … } from '…'\``);
  }
  for (const [, , list, from] of statements) {
    for (const item of list.split(',')) {
      const exported = item.trim().replace(/^type /, '');
      if (exported === '') continue;
      packageOf.set(exported, name);
      readExport(path.join(dist, `${from}.d.ts`), exported);
    }
  }
}

const snippets = []; // { where, code, language }
for (const { what, file, doc, needsExample } of documented) {
  const { sources, dist } = PACKAGES.find((each) => file.startsWith(each.dist + path.sep));
  const where = `${sources}/${path.relative(dist, file).replace('.d.ts', '.ts')}: ${what}`;
  if (doc === undefined || doc === '') {
    problems.push(`${where} has no docstring`);
    continue;
  }
  const examples = doc.split(/^@example\b/m).slice(1);
  if (needsExample && examples.length === 0) problems.push(`${where} has no @example`);
  for (const example of examples) {
    const code = /^```ts\n([\s\S]*?)^```/m.exec(example)?.[1];
    if (code === undefined) problems.push(`${where}: an @example is a block \`\`\`ts`);
    else snippets.push({ where, code, language: 'ts' });
  }
}

// --- Markdown.

const pages = execFileSync('git', ['ls-files', '-co', '--exclude-standard', '*.md'], { cwd: root, encoding: 'utf8' })
  .split('\n')
  .filter((page) => page !== '' && fs.existsSync(path.join(root, page)));
for (const page of pages) {
  const text = fs.readFileSync(path.join(root, page), 'utf8');
  for (const [block, language, code] of text.matchAll(/^```(js|ts)\n([\s\S]*?)^```/gm)) {
    if (/ from '\./.test(code)) continue; // a part of lib/, which a test of its own compiles there
    const line = text.slice(0, text.indexOf(block)).split('\n').length;
    snippets.push({ where: `${page}:${line}`, code, language });
  }
  const prose = text.replace(/^```[\s\S]*?^```/gm, '');
  for (const [, target] of prose.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
    if (/^[a-z]+:/.test(target)) continue;
    if (!fs.existsSync(path.join(root, path.dirname(page), target))) problems.push(`${page}: no file ${target}`);
  }
  if (!PAGES_FOR_DEVELOPERS.includes(page)) continue;
  for (const [, name] of prose.matchAll(
    /`((?:lib|server|deploy|native|cuda|scripts|test|benchmark|docs|examples|cmake)\/[^`\s]*)`/g,
  )) {
    const exists = name.includes('*')
      ? fs.globSync?.(name, { cwd: root }).length !== 0
      : fs.existsSync(path.join(root, name));
    if (!exists) problems.push(`${page}: no file ${name}`);
  }
}

// --- All snippets compile. They may use every export, a model, a chat, a tokenizer and a server without saying where from.

const CONTEXT = { model: 'Model', chat: 'Chat', tokenizer: 'Tokenizer', server: 'Server' };

function complete(code) {
  const declares = (name) =>
    new RegExp(
      `\\b(?:const|let|using) ${name}\\b|\\b(?:const|let|import)(?: type)? \\{[^}]*\\b${name}\\b[^}]*\\} (?:=|from)`,
    ).test(code);
  const uses = (name) => new RegExp(`(?<![.\\w'])${name}\\b(?!\\s*:)`).test(code.replaceAll('...', ''));
  const context = Object.entries(CONTEXT).filter(([name]) => uses(name) && !declares(name));
  const imported = [...packageOf.keys()].filter((name) => uses(name) && !declares(name));
  const wanted = [...new Set([...imported, ...context.map(([, type]) => type)])];
  return [
    ...PACKAGES.map(({ name }) => {
      const own = wanted.filter((each) => packageOf.get(each) === name);
      return own.length > 0 ? `import { ${own.join(', ')} } from '${name}';` : '';
    }),
    ...context.map(([name, type]) => `declare const ${name}: ${type};`),
    code,
    'export {};',
  ].join('\n');
}

fs.rmSync(scratch, { recursive: true, force: true });
fs.mkdirSync(scratch, { recursive: true });
const whereOf = new Map();
snippets.forEach(({ where, code, language }, i) => {
  const isScript = /\brequire\(/.test(code); // CommonJS, complete as it is
  const file = `${String(i).padStart(3, '0')}.${isScript ? 'cjs' : 'mts'}`;
  const isLoose = language === 'js' && !isScript;
  whereOf.set(file, where);
  fs.mkdirSync(path.join(scratch, isLoose ? 'js' : 'ts'), { recursive: true });
  fs.writeFileSync(path.join(scratch, isLoose ? 'js' : 'ts', file), isScript ? code : complete(code));
});
const typescript = path.join(path.dirname(require.resolve('typescript/package.json')), 'bin', 'tsc');
for (const [folder, strictness] of [
  ['ts', {}],
  // What is JavaScript in the text has no types of its own.
  ['js', { noImplicitAny: false, useUnknownInCatchVariables: false }],
]) {
  if (!fs.existsSync(path.join(scratch, folder))) continue;
  const config = path.join(scratch, folder, 'tsconfig.json');
  const options = {
    noEmit: true,
    allowJs: true,
    checkJs: true,
    noImplicitAny: false,
    rootDir: '../../..',
    ...strictness,
  };
  fs.writeFileSync(
    config,
    JSON.stringify({
      extends: '../../../tsconfig.json',
      compilerOptions: options,
      include: ['.', '../../../test/support/fetch.d.ts'],
    }),
  );
  const { stdout } = spawnSync(process.execPath, [typescript, '-p', config], {
    cwd: path.join(scratch, folder),
    encoding: 'utf8',
  });
  for (const line of stdout.split('\n')) {
    if (line === '') continue;
    const file = /^([\w.]+)\(/.exec(line)?.[1];
    problems.push(`${whereOf.get(file) ?? 'an example'}: ${line}`);
  }
}

for (const problem of problems) console.error(problem);
console.log(
  `${documented.length} docstrings, ${snippets.length} examples, ${pages.length} pages: ${
    problems.length === 0 ? 'complete, and all of them compile' : 'see above'
  }`,
);
process.exit(problems.length === 0 ? 0 : 1);

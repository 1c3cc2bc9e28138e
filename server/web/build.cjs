'use strict';
// Bundles the page: scripts, styles and fonts under assets/, whose names hold a hash of what is in them, index.html, which
// names them, and files.json, the list that the server reads. What can be compressed lies beside its gzip and brotli forms.
const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const zlib = require('node:zlib');
const { build } = require('esbuild');

const TYPES = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.txt': 'text/plain; charset=utf-8',
  '.woff2': 'font/woff2',
};

exports.build = async (outdir) => {
  fs.rmSync(outdir, { recursive: true, force: true });
  const assets = path.join(outdir, 'assets');
  fs.mkdirSync(assets, { recursive: true });
  const common = {
    outdir: assets,
    absWorkingDir: __dirname,
    entryNames: '[name]-[hash]',
    chunkNames: '[name]-[hash]',
    assetNames: '[name]-[hash]',
    bundle: true,
    minify: true,
    metafile: true,
    target: 'es2022',
    legalComments: 'none',
    logLevel: 'warning',
  };
  // KaTeX's style sheet is loaded with the first formula, so that the script has to know its name.
  const math = await build({
    ...common,
    entryPoints: [path.join(__dirname, 'src', 'styles', 'math.css')],
    loader: { '.woff2': 'file' },
    plugins: [onlyWoff2],
  });
  // Runs before the page is painted; a module would run after that.
  const early = await build({
    ...common,
    entryPoints: [path.join(__dirname, 'src', 'early.ts'), path.join(__dirname, 'src', 'icon.svg')],
    loader: { '.svg': 'copy' },
    format: 'iife',
  });
  const page = await build({
    ...common,
    entryPoints: [path.join(__dirname, 'src', 'main.tsx')],
    format: 'esm',
    splitting: true,
    jsx: 'automatic',
    jsxImportSource: 'preact',
    define: { MATH_STYLE: JSON.stringify(outputOf(math, '.css')) },
  });
  const main = outputOf(page, '.js', 'src/main.tsx');
  const html = fill(fs.readFileSync(path.join(__dirname, 'index.html'), 'utf8'), {
    early: outputOf(early, '.js'),
    icon: outputOf(early, '.svg'),
    main,
    style: outputOf(page, '.css'),
    preload: importsOf(page, main)
      .map((name) => `<link rel="modulepreload" href="assets/${name}">\n`)
      .join(''),
  });
  fs.writeFileSync(path.join(outdir, 'index.html'), html);

  fs.writeFileSync(path.join(outdir, 'licenses.txt'), licenses([math, page]));

  const names = ['index.html', 'licenses.txt', ...fs.readdirSync(assets).map((name) => `assets/${name}`)];
  const files = names.map((name) => {
    const bytes = fs.readFileSync(path.join(outdir, name));
    const type = TYPES[path.extname(name)];
    if (!type) throw new Error(`the page has a file of an unknown type: ${name}`);
    const encodings = path.extname(name) === '.woff2' ? [] : compress(path.join(outdir, name), bytes);
    const etag = createHash('sha256').update(bytes).digest('base64url').slice(0, 22);
    return { name, type, bytes: bytes.length, etag, encodings };
  });
  // What a first visit loads: the page, what it names, and what these import at once.
  const first = ['index.html', ...[...html.matchAll(/(?:src|href)="(assets\/[^"]+)"/g)].map(([, name]) => name)];
  fs.writeFileSync(path.join(outdir, 'files.json'), JSON.stringify({ first, files }, null, 1));
};

/** Browsers that run the page take the smallest of the forms of KaTeX's fonts. */
const onlyWoff2 = {
  name: 'only-woff2',
  setup({ onLoad }) {
    onLoad({ filter: /katex[^/\\]*\.css$/ }, ({ path: file }) => ({
      contents: fs
        .readFileSync(file, 'utf8')
        .replace(/,url\([^)]*\.woff\) format\("woff"\),url\([^)]*\.ttf\) format\("truetype"\)/g, ''),
      loader: 'css',
    }));
  },
};

function outputOf({ metafile }, ending, entry) {
  const found = Object.entries(metafile.outputs).filter(
    ([name, { entryPoint }]) => name.endsWith(ending) && (entry === undefined || entryPoint === entry),
  );
  if (found.length !== 1) throw new Error(`${found.length} files ${ending} where there should be one`);
  return path.basename(found[0][0]);
}

/** The chunks that a script needs before it can run. */
function importsOf({ metafile }, main, seen = new Set()) {
  const [, output] = Object.entries(metafile.outputs).find(([name]) => path.basename(name) === main);
  for (const { path: file, kind } of output.imports) {
    const name = path.basename(file);
    if (kind !== 'import-statement' || seen.has(name)) continue;
    seen.add(name);
    importsOf({ metafile }, name, seen);
  }
  return [...seen];
}

/** What the packages whose code or fonts are in the page ask for: their licenses go wherever it goes. */
function licenses(results) {
  const folders = new Set();
  for (const { metafile } of results) {
    for (const input of Object.keys(metafile.inputs)) {
      const [folder] = /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input) ?? [];
      if (folder) folders.add(path.resolve(__dirname, folder));
    }
  }
  return [...folders]
    .sort()
    .map((folder) => {
      const { name, version } = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
      const file = fs.readdirSync(folder).find((each) => /^licen[cs]e(\.\w+)?$/i.test(each));
      if (!file) throw new Error(`the package ${name} has no file with its license`);
      return `${name} ${version}\n\n${fs.readFileSync(path.join(folder, file), 'utf8').trim()}\n`;
    })
    .join(`\n${'-'.repeat(80)}\n\n`);
}

function fill(template, values) {
  return template.replace(/\{\{(\w+)\}\}/g, (_, name) => values[name]);
}

/** Writes the compressed forms that are worth it, and tells their names as HTTP has them. */
function compress(file, bytes) {
  const quality = { params: { [zlib.constants.BROTLI_PARAM_QUALITY]: zlib.constants.BROTLI_MAX_QUALITY } };
  const forms = {
    br: zlib.brotliCompressSync(bytes, quality),
    gzip: zlib.gzipSync(bytes, { level: zlib.constants.Z_BEST_COMPRESSION }),
  };
  return Object.keys(forms).filter((encoding) => {
    if (forms[encoding].length >= bytes.length) return false;
    fs.writeFileSync(`${file}.${encoding}`, forms[encoding]);
    return true;
  });
}

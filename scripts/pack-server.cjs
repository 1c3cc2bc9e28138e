'use strict';
// Packs server/ as it is published: in the repository its dependency on node-chatglm is a link, which a registry cannot
// have, and in the tarball the version that both packages share. pack(folder) gives the tarball's path.
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const server = path.join(root, 'server');

exports.pack = (destination) => {
  const staged = fs.mkdtempSync(path.join(os.tmpdir(), 'node-chatglm-server-'));
  try {
    const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
    const manifest = JSON.parse(fs.readFileSync(path.join(server, 'package.json'), 'utf8'));
    if (manifest.version !== version) throw new Error(`server/package.json says ${manifest.version}, not ${version}`);
    manifest.dependencies['node-chatglm'] = version;
    delete manifest.devDependencies;
    fs.writeFileSync(path.join(staged, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    fs.cpSync(path.join(server, 'dist'), path.join(staged, 'dist'), { recursive: true });
    fs.copyFileSync(path.join(server, 'README.md'), path.join(staged, 'README.md'));
    fs.copyFileSync(path.join(root, 'LICENSE'), path.join(staged, 'LICENSE'));
    const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', destination];
    const [{ filename, files, size }] = JSON.parse(execFileSync('npm', args, { cwd: staged, encoding: 'utf8' }));
    return { file: path.join(destination, filename), names: files.map((file) => file.path), size };
  } finally {
    fs.rmSync(staged, { recursive: true, force: true });
  }
};

if (require.main === module) console.log(exports.pack(process.cwd()).file);

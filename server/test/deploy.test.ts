import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { parse, parseAllDocuments } from 'yaml';
import { createServer } from '../src/index.js';

// What deploy/ says of the server, held against the server.

const root = path.join(__dirname, '..', '..');
const read = (name: string) => fs.readFileSync(path.join(root, name), 'utf8');

interface Service {
  command?: string[];
  environment?: Record<string, string>;
}
const { services } = parse(read('deploy/compose.yaml'), { merge: true }) as { services: Record<string, Service> };
const kubernetes = ['server.yaml', 'worker.yaml']
  .flatMap((name) => parseAllDocuments(read(`deploy/kubernetes/base/${name}`)))
  .map((document) => document.toJS().spec.template.spec.containers[0]);

/** Values for what is put in where it runs. */
const VARIABLES: Record<string, string> = {
  CHATGLM_MODEL: 'model.gguf',
  CHATGLM_DEVICE: 'cpu',
  REDIS_URL: 'redis://redis:6379',
  MODEL: 'model.gguf',
  OPTIONS: '--host 127.0.0.1',
  THREADS: '2',
};
const filled = (text: string) =>
  text.replaceAll(/\$[({]?([A-Z_]+)(?::-[^}]*)?[)}]?/g, (all, name: string) => {
    if (VARIABLES[name] === undefined) throw new Error(`${all} has no value`);
    return VARIABLES[name];
  });

const [, unit = ''] =
  /^ExecStart=\/usr\/bin\/env chatglm-server (.*)$/m.exec(read('deploy/systemd/chatglm-server.service')) ?? [];
const [, image = ''] = /^CMD (\[.*\])$/m.exec(read('deploy/Dockerfile').replace(/.*\nENTRYPOINT/s, '')) ?? [];
const commands: [string, string[]][] = [
  ['the image', JSON.parse(image)],
  ['systemd', filled(unit.replace('%S', '/var/lib')).split(' ')],
  ...Object.entries(services)
    .filter(([name]) => /^(server-\d|worker)$/.test(name))
    .map(([name, { command = [] }]): [string, string[]] => [`compose, ${name}`, command.map(filled)]),
  ...kubernetes.map(({ name, args }): [string, string[]] => [`kubernetes, ${name}`, args.map(filled)]),
];

test('the places are all there', () => {
  expect(commands.map(([name]) => name)).toEqual([
    'the image',
    'systemd',
    'compose, server-1',
    'compose, server-2',
    'compose, server-3',
    'compose, worker',
    'kubernetes, server',
    'kubernetes, worker',
  ]);
});

/** Options are read before the help is shown. */
function help(args: readonly string[]): { status: number | null; stderr: string } {
  const main = path.join(root, 'server', 'dist', 'cli', 'main.js');
  return spawnSync(process.execPath, [main, ...args, '--help'], { encoding: 'utf8' });
}

test.each(commands)('the server takes the options that it gets from %s', (_name, args) => {
  expect(help(args)).toMatchObject({ status: 0, stderr: '' });
});

test.each([[[]], [['worker']]])('an option that there is not is refused behind %j', (args) => {
  expect(help([...args, '--no-such-option'])).toMatchObject({ status: 2 });
});

test('probes, checks and autoscaling ask for what the server has', async () => {
  const { app } = createServer({ logger: false, preload: false });
  const paths = new Set([
    ...[...read('deploy/Dockerfile').matchAll(/http:\/\/127\.0\.0\.1:8000(\/\w+)/g)].map(
      ([, found]) => found as string,
    ),
    ...kubernetes.flatMap((container) =>
      ['startupProbe', 'readinessProbe', 'livenessProbe'].flatMap((probe) => container[probe]?.httpGet.path ?? []),
    ),
  ]);
  expect([...paths].sort()).toEqual(['/health', '/ready']);
  await app.ready();
  for (const url of [...paths, '/metrics']) expect([url, app.hasRoute({ method: 'GET', url })]).toEqual([url, true]);

  const { body } = await app.inject('/metrics');
  const known = [...body.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name);
  const sources = [
    'docs/server-deploy.md',
    'deploy/kubernetes/base/autoscaler.yaml',
    'deploy/kubernetes/prometheus-adapter-values.yaml',
  ];
  for (const source of sources) {
    const named = [...read(source).matchAll(/\b(chatglm_[a-z_]+|nodejs_[a-z0-9_]+)\b/g)].map(([, name]) => name);
    expect([source, named.length > 0, named.filter((name) => !known.includes(name as string))]).toEqual([
      source,
      true,
      [],
    ]);
  }
  await app.close();
});

test('nginx lists the replicas that compose starts', () => {
  const listed = [...read('deploy/nginx/servers.conf').matchAll(/^server (\S+):(\d+) /gm)].map(([, name, port]) => [
    name,
    port,
  ]);
  const started = Object.keys(services).filter((name) => name.startsWith('server-'));
  expect(listed).toEqual(started.map((name) => [name, '8000']));
});

test('everything that the image copies is there, and in what is sent to build it', () => {
  const ignored = read('deploy/Dockerfile.dockerignore')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'));
  const allowed = ignored.filter((line) => line.startsWith('!')).map((line) => line.slice(1));
  const copied = [...read('deploy/Dockerfile').matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, sources = '']) =>
    sources.split(' '),
  );
  expect(copied.length).toBeGreaterThan(10);
  for (const source of copied) {
    expect([source, fs.existsSync(path.join(root, source))]).toEqual([source, true]);
    const isSent = allowed.some((each) => source === each || source.startsWith(`${each}/`));
    expect([source, isSent]).toEqual([source, true]);
  }
});

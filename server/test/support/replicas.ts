import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

const root = path.join(__dirname, '..', '..', '..');

/** A server in a process of its own. */
export class Replica {
  readonly port: number;
  readonly #child: ChildProcess;
  /** Resolves with how the process ended. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.port = port;
    this.ended = once(child, 'exit').then(([code, signal]) => ({ code, signal }));
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Starts one, and waits until its model is loaded. @param port 0 for any. */
  static async start(args: readonly string[] = [], port = 0): Promise<Replica> {
    const main = path.join(root, 'server', 'dist', 'cli', 'main.js');
    const child = spawn(process.execPath, [main, '--port', String(port), '--log-format', 'json', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let said = '';
    child.stderr.on('data', (data) => {
      said += data;
    });
    let listening: number | undefined;
    for await (const line of createInterface({ input: child.stdout })) {
      said += `${line}\n`;
      const { msg } = JSON.parse(line) as { msg: string };
      listening ??= Number(/listening at http:\/\/[^:]+:(\d+)/.exec(msg)?.[1] ?? 0) || undefined;
      if (listening !== undefined && msg === 'the model is loaded') {
        child.stdout.resume();
        return new Replica(child, listening);
      }
    }
    throw new Error(`the server ended: ${said}`);
  }

  async signal(signal: NodeJS.Signals): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    this.#child.kill(signal);
    return await this.ended;
  }

  /** The value of a metric without labels, or of all its labels together. */
  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const lines = text.split('\n').filter((line) => line.startsWith(name) && /^[{ ]/.test(line.slice(name.length)));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }
}

/** A request as nginx logs it. */
export interface LoggedRequest {
  request: string;
  status: number;
  /** Addresses of the replicas that were asked, in their order. */
  replicas: string[];
}

/** nginx with the configuration of deploy/nginx/, as a user that may do nothing, in a directory of its own. */
export class Nginx {
  readonly port: number;
  readonly #child: ChildProcess;
  readonly #directory: string;
  #errors = '';

  private constructor(child: ChildProcess, directory: string, port: number) {
    this.#child = child;
    this.#directory = directory;
    this.port = port;
    child.stderr?.on('data', (data) => {
      this.#errors += data;
    });
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** What nginx wrote to its error log. */
  get errors(): string {
    return this.#errors;
  }

  static async start(ports: readonly number[]): Promise<Nginx> {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'replicas-'));
    const port = await freePort();
    const read = (name: string) => fs.readFileSync(path.join(root, 'deploy', 'nginx', name), 'utf8');
    const config = replaced(read('nginx.conf'), [
      ['/tmp/nginx', `${directory}/nginx`],
      ['/dev/stdout', `${directory}/access.log`],
      ['listen 8080;', `listen 127.0.0.1:${port};`],
    ]);
    const servers = replaced(
      read('servers.conf'),
      ports.map((each, i) => [`server-${i + 1}:8000`, `127.0.0.1:${each}`]),
    );
    fs.writeFileSync(path.join(directory, 'nginx.conf'), config);
    fs.writeFileSync(path.join(directory, 'servers.conf'), servers);
    const nobody = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
    if (nobody.uid !== undefined) fs.chownSync(directory, nobody.uid, nobody.gid);
    const program =
      ['/usr/sbin/nginx', '/usr/local/sbin/nginx', '/opt/homebrew/bin/nginx'].find(fs.existsSync) ?? 'nginx';
    const child = spawn(program, ['-c', `${directory}/nginx.conf`, '-e', 'stderr', '-g', 'daemon off;'], {
      stdio: ['ignore', 'ignore', 'pipe'],
      ...nobody,
    });
    const nginx = new Nginx(child, directory, port);
    for (;;) {
      if (child.exitCode !== null) throw new Error(`nginx ended: ${nginx.#errors}`);
      const isUp = await fetch(`${nginx.url}/nginx-health`).then(
        ({ ok }) => ok,
        () => false,
      );
      if (isUp) return nginx;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** What has been answered since the last call. nginx logs a request once its answer is out. */
  requests(): LoggedRequest[] {
    const file = path.join(this.#directory, 'access.log');
    const lines = fs.readFileSync(file, 'utf8').split('\n').filter(Boolean);
    return lines.splice(this.#read, Number.POSITIVE_INFINITY).map((line) => {
      this.#read++;
      const { request, status, replica } = JSON.parse(line) as Record<string, string> & { status: number };
      const replicas = String(replica)
        .split(/, | : /)
        .filter(Boolean);
      return { request: String(request), status, replicas };
    });
  }
  #read = 0;

  async stop(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGQUIT');
    await ended;
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** All places have to be there: a configuration that has changed must not be tested with half of them. */
function replaced(text: string, pairs: readonly (readonly [string, string])[]): string {
  let result = text;
  for (const [from, to] of pairs) {
    if (!result.includes(from)) throw new Error(`there is no ${from} in the configuration any more`);
    result = result.replaceAll(from, to);
  }
  return result;
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

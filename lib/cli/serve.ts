import { readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { note } from './output.js';

/** The server is a package of its own: what it is made of is not for those who only call loadModel(). */
const PACKAGE = 'node-chatglm-server';

/** Without reading the arguments: the server's program knows them. */
export async function runAsGiven(args: readonly string[]): Promise<void> {
  const program = findServer();
  if (program === undefined) {
    note(`chatglm: the server is a package of its own, which is not installed here. Install it with

  npm install ${PACKAGE}

and try again, or run it without installing it: npx ${PACKAGE} MODEL`);
    process.exitCode = 1;
    return;
  }
  // In this process, so that signals and the terminal are the server's own.
  process.argv = [process.execPath, program, ...args];
  await import(pathToFileURL(program).href);
}

/** The server's program: of the project in the current directory, or beside this package. */
function findServer(): string | undefined {
  for (const from of [process.cwd(), __dirname]) {
    try {
      const file = require.resolve(`${PACKAGE}/package.json`, { paths: [from] });
      const { bin } = JSON.parse(readFileSync(file, 'utf8')) as { bin: Record<string, string> };
      return path.join(path.dirname(file), bin['chatglm-server'] as string);
    } catch {
      // Not there: the next place.
    }
  }
  return undefined;
}

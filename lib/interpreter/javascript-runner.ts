/**
 * What runs the code in the Node.js process: the engine of Node's REPL, which keeps what is declared, knows `await` at the
 * top and gives the last expression's value. The protocol is the Python runner's.
 */
export const JAVASCRIPT_RUNNER = String.raw`
'use strict';
const { PassThrough, Writable } = require('node:stream');
const { inspect } = require('node:util');
const net = require('node:net');
const fs = require('node:fs');
const repl = require('node:repl');

// What is printed waits for its reader, instead of filling the memory. Both streams are opened first: opening the second one
// would undo it for the first, whose pipe they share.
const streams = [process.stdout, process.stderr];
for (const stream of streams) stream._handle?.setBlocking?.(true);
const write = process.stdout.write.bind(process.stdout);
const channel = new net.Socket({ fd: 3, readable: true, writable: true });
channel.on('error', () => process.exit(0));
channel.on('end', () => process.exit(0));

let current; // the request under way
const print = (text) => void write(text.endsWith('\n') ? text : text + '\n');

/** The error's text without the frames of this file and of Node itself. */
function textOf(error) {
  let text;
  try {
    if (typeof error === 'object' && error !== null) {
      // Marks of the REPL's domain.
      for (const name of ['domain', 'domainBound', 'domainEmitter', 'domainThrown']) delete error[name];
    }
    const isError = typeof error === 'object' && error !== null && typeof error.stack === 'string';
    text = isError ? inspect(error) : 'Uncaught ' + inspect(error);
  } catch {
    text = 'Uncaught error (its text cannot be shown)';
  }
  return text.split('\n').filter((line) => !/^\s+at .*(\(|\s)(node:|\[eval\])/.test(line)).join('\n');
}

function finish(status, ending) {
  if (current === undefined) return;
  const { id, marker } = current;
  current = undefined;
  write(marker);
  const reply = JSON.stringify({ id, status, ending: ending === true }) + '\n';
  if (ending) fs.writeSync(3, reply);
  else channel.write(reply);
}

function fail(error) {
  const text = textOf(error);
  print(text);
  finish(/^RangeError: Array buffer allocation failed/.test(text) ? 'memory' : 'error');
}

process.on('exit', (code) => finish(code ? 'error' : 'ok', true));
process.on('uncaughtException', fail);
process.on('unhandledRejection', fail);

const server = repl.start({
  prompt: '',
  input: new PassThrough(),
  output: new Writable({ write(data, encoding, done) { write(data); done(); } }),
  terminal: false,
  useColors: false,
  useGlobal: false,
  ignoreUndefined: true,
});
// Errors of code that runs at once reach the domain of the REPL, which would only print them.
if (server._domain) {
  server._domain.removeAllListeners('error');
  server._domain.on('error', fail);
}

let count = 0;
function run(code) {
  server.eval(code + '\n', server.context, 'cell ' + ++count, async (error, value) => {
    try {
      if (error) throw error.err ?? error; // an unfinished text comes as a Recoverable around the error
      const shown = await value;
      if (shown !== undefined) print(inspect(shown));
      finish('ok');
    } catch (thrown) {
      fail(thrown);
    }
  });
}

let parts = [];
channel.on('data', (data) => {
  parts.push(data);
  if (!data.includes(10)) return;
  const lines = Buffer.concat(parts).toString().split('\n');
  parts = [Buffer.from(lines.pop())];
  for (const line of lines) {
    current = JSON.parse(line);
    try {
      run(current.code);
    } catch (error) {
      fail(error);
    }
  }
});
channel.write(JSON.stringify({ ready: true }) + '\n');
`;

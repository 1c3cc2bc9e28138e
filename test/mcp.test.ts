import { spawnSync } from 'node:child_process';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { chatPrompt } from '../lib/families/index.js';
import { type McpClient, type McpTool, toolsFromMcp } from '../lib/tools/mcp.js';
import type { Tool } from '../lib/tools/tool.js';
import { ToolSet } from '../lib/tools/tool-set.js';

// The reference server of the protocol, in a process of its own.
const server = require.resolve('@modelcontextprotocol/server-everything/dist/index.js');

async function connect() {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(
    new StdioClientTransport({ command: process.execPath, args: [server, 'stdio'], stderr: 'ignore' }),
  );
  return client;
}

describe('a server', () => {
  let client: Client;
  let tools: Tool[];
  let set: ToolSet;
  beforeAll(async () => {
    client = await connect();
    tools = await toolsFromMcp(client, { prefix: 'mcp_' });
    set = ToolSet.read(tools);
  });
  afterAll(() => client.close());

  const call = (name: string, args: Record<string, unknown>, signal?: AbortSignal) =>
    set.run({ name: `mcp_${name}`, arguments: args, raw: '' }, { round: 0, signal });

  test('lists its tools, which a prompt can show', async () => {
    expect([...set.names]).toEqual(expect.arrayContaining(['mcp_echo', 'mcp_get-sum', 'mcp_get-tiny-image']));
    expect(set.get('mcp_echo')).toMatchObject({
      description: expect.any(String),
      parameters: { type: 'object', properties: { message: { type: 'string' } }, required: ['message'] },
    });
    expect(JSON.stringify(set.shown)).not.toMatch(/\$schema|execute/);
    expect(chatPrompt('chatglm3', [{ role: 'system', content: '', tools: set.shown }]).join('')).toContain('mcp_echo');
    // Those that only run as tasks cannot be called.
    const listed = (await client.listTools()).tools;
    const tasks = listed.filter(({ execution }) => execution?.taskSupport === 'required').map(({ name }) => name);
    expect(tasks).toContain('simulate-research-query');
    expect(tools).toHaveLength(listed.length - tasks.length);
  });

  test('gives text', async () => {
    expect(await call('echo', { message: '你好' })).toEqual({ ok: true, content: 'Echo: 你好', value: 'Echo: 你好' });
    expect((await call('get-sum', { a: 2, b: 40 })).content).toBe('The sum of 2 and 40 is 42.');
  });

  test('gives structured content', async () => {
    const value = { temperature: 33, conditions: 'Cloudy', humidity: 82 };
    const content = '{"temperature": 33, "conditions": "Cloudy", "humidity": 82}';
    expect(await call('get-structured-content', { location: 'New York' })).toEqual({ ok: true, content, value });
  });

  test('gives images and resources, which the model is told of', async () => {
    const image = await call('get-annotated-message', { messageType: 'debug', includeImage: true });
    expect(image.content).toMatch(/^Debug: .*\n\[image image\/png, \d{3,} bytes\]$/);
    const text = await call('get-resource-reference', { resourceType: 'Text', resourceId: 1 });
    expect(text.content).toMatch(/\[resource demo:\/\/resource\/dynamic\/text\/1, text\/plain\]\n.*Resource 1/);
    const blob = await call('get-resource-reference', { resourceType: 'Blob', resourceId: 1 });
    expect(blob.content).toMatch(/\[resource demo:\/\/resource\/dynamic\/blob\/1, text\/plain, \d+ bytes\]/);
    const links = await call('get-resource-links', { count: 2 });
    expect(links.content.match(/^\[resource demo:\S+, text\/plain: .+\]$/gm)).toHaveLength(2);
  });

  test('says what is wrong with arguments', async () => {
    const { ok, content, error } = await call('get-sum', { a: 'two', b: 1 });
    expect(ok).toBe(false);
    expect(content).toMatch(/^Error: .*get-sum[\s\S]*number/);
    expect(error).toMatchObject({ code: 'ERR_TOOL_FAILED', details: { tool: 'mcp_get-sum' } });
    expect((await call('get-resource-reference', { resourceType: 'Text', resourceId: -1 })).content).toMatch(
      /^Error: .*resourceId/,
    );
  });

  test('is told when nobody waits any more', async () => {
    const args = { duration: 600, steps: 600 };
    const controller = new AbortController();
    const running = call('trigger-long-running-operation', args, controller.signal);
    setImmediate(() => controller.abort());
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    const [slow] = tools.filter(({ name }) => name === 'mcp_trigger-long-running-operation');
    const impatient = ToolSet.read([{ ...(slow as Tool), timeoutMs: 20 }]);
    const { content } = await impatient.run(
      { name: 'mcp_trigger-long-running-operation', arguments: args, raw: '' },
      { round: 0 },
    );
    expect(content).toBe('Error: mcp_trigger-long-running-operation took longer than 20 ms');
    // The connection goes on.
    expect((await call('echo', { message: 'still here' })).ok).toBe(true);
  });

  test('that is gone fails the call, and the listing', async () => {
    const other = await connect();
    const [echo] = ToolSet.read(await toolsFromMcp(other)).names;
    const gone = ToolSet.read(await toolsFromMcp(other));
    await other.close();
    const { ok, error } = await gone.run({ name: echo as string, arguments: { message: 'x' }, raw: '' }, { round: 0 });
    expect(ok).toBe(false);
    expect(error?.code).toBe('ERR_TOOL_FAILED');
    await expect(toolsFromMcp(other)).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED', cause: expect.anything() });
  });
});

/** A client that lists these pages and gives these results. */
function fake(pages: readonly (readonly McpTool[])[], result: unknown = { content: [] }) {
  const asked: unknown[] = [];
  const client: McpClient = {
    async listTools({ cursor } = {}) {
      asked.push(cursor);
      const page = Number(cursor ?? 0);
      return { tools: [...(pages[page] ?? [])], nextCursor: page + 1 < pages.length ? String(page + 1) : undefined };
    },
    async callTool(params) {
      asked.push(params);
      if (result instanceof Error) throw result;
      return result;
    },
  };
  return { client, asked };
}
const listed = (name: string): McpTool => ({ name, inputSchema: { type: 'object' } });

describe('a client', () => {
  test('gives all pages of the list', async () => {
    const { client, asked } = fake([[listed('a'), listed('b')], [], [listed('c')]]);
    expect((await toolsFromMcp(client)).map(({ name }) => name)).toEqual(['a', 'b', 'c']);
    expect(asked).toEqual([undefined, '1', '2']);
  });

  test('whose list never ends is not followed forever', async () => {
    let pages = 0;
    const client = { ...fake([]).client, listTools: async () => ({ tools: [], nextCursor: String(pages++) }) };
    await expect(toolsFromMcp(client)).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED' });
    expect(pages).toBe(1000);
  });

  test('is called by the names of the server', async () => {
    const { client, asked } = fake([[listed('files/read\nme')]]);
    const set = ToolSet.read(await toolsFromMcp(client, { prefix: 'fs.' }));
    expect([...set.names]).toEqual(['fs.files/read_me']);
    await set.run({ name: 'fs.files/read_me', arguments: { path: 'x' }, raw: '' }, { round: 0 });
    expect(asked.at(-1)).toEqual({ name: 'files/read\nme', arguments: { path: 'x' } });
  });

  test.each<[string, unknown, object]>([
    ['nothing', { content: [] }, { ok: true, content: 'ok' }],
    [
      'several texts',
      {
        content: [
          { type: 'text', text: 'a' },
          { type: 'text', text: 'b' },
        ],
      },
      { content: 'a\nb' },
    ],
    [
      'a sound',
      { content: [{ type: 'audio', mimeType: 'audio/wav', data: 'AAAA' }] },
      { content: '[audio audio/wav, 3 bytes]' },
    ],
    ['a block of another kind', { content: [{ type: 'hologram' }] }, { content: '[hologram]' }],
    [
      'structured content and an image',
      {
        structuredContent: { x: 1 },
        content: [
          { type: 'text', text: '{"x":1}' },
          { type: 'image', mimeType: 'i', data: '' },
        ],
      },
      { content: '{"x": 1}\n[image i, 0 bytes]', value: { x: 1 } },
    ],
    ['a result of the first version', { toolResult: [1] }, { content: '[1]', value: [1] }],
    ['an error', { isError: true, content: [{ type: 'text', text: 'no' }] }, { ok: false, content: 'Error: no' }],
    [
      'an error without words',
      { isError: true },
      { ok: false, content: 'Error: the server says that the call failed' },
    ],
    ['an error of the connection', new Error('gone'), { ok: false, content: 'Error: gone' }],
    ['what is no result', null, { ok: false }],
    ['what is no content', { content: [null] }, { ok: false }],
  ])('that gives %s', async (_, result, outcome) => {
    const set = ToolSet.read(await toolsFromMcp(fake([[listed('f')]], result).client));
    expect(await set.run({ name: 'f', arguments: {}, raw: '' }, { round: 0 })).toMatchObject(outcome);
  });

  test('wants sensible options, and may be aborted', async () => {
    const { client } = fake([[listed('f')]]);
    const invalid = (promise: Promise<unknown>, message: RegExp) =>
      expect(promise).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(message) });
    await invalid(toolsFromMcp(null as never), /client must be a Client/);
    await invalid(toolsFromMcp({} as never), /client must be a Client/);
    await invalid(toolsFromMcp(client, { prefix: 1 as never }), /prefix must be a string/);
    await invalid(toolsFromMcp(client, { timeoutMs: 0 }), /timeoutMs/);
    await invalid(toolsFromMcp(client, { prefx: 'a' } as never), /no option prefx/);
    await expect(toolsFromMcp(client, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    const controller = new AbortController();
    const hung: McpClient = {
      ...client,
      listTools: (_, options) =>
        new Promise((_resolve, reject) => {
          options?.signal?.addEventListener('abort', () => reject(new Error('cancelled')));
          controller.abort();
        }),
    };
    await expect(toolsFromMcp(hung, { signal: controller.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect((await toolsFromMcp(client, { timeoutMs: 7 }))[0]?.timeoutMs).toBe(7);
  });

  test('whose list has nonsense in it', async () => {
    for (const tools of [null, [null], [{}], [{ name: 'f' }]]) {
      const client = { ...fake([]).client, listTools: async () => ({ tools }) as never };
      await expect(toolsFromMcp(client)).rejects.toMatchObject({ code: 'ERR_TOOL_FAILED' });
    }
  });
});

test("the package does not load the protocol's SDK", () => {
  const script = `
    require('./dist/tools/mcp.js');
    if (Object.keys(require.cache).some((file) => /modelcontextprotocol|cfworker/.test(file))) process.exit(1);`;
  expect(spawnSync(process.execPath, ['-e', script], { cwd: `${__dirname}/..` }).status).toBe(0);
});

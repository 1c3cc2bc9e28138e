// Shows a server that OpenAI's clients can use, in a program of your own: with a key, and a tool for the page's chats.
// Run: node openai-server.mjs [path of a checkpoint], with node-chatglm-server and openai installed beside node-chatglm.
// Prints: the answer that OpenAI's client gets, and what a client with a wrong key gets.
import { defineTool } from 'node-chatglm';
import { createServer } from 'node-chatglm-server';
import OpenAI from 'openai';

const getWeather = defineTool({
  name: 'get_weather',
  description: '查询某个城市的天气',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  execute: async ({ city }) => ({ city, celsius: 21 }),
});
const server = createServer({
  model: { chatglm: { path: process.argv[2] } },
  keys: [{ name: 'anna', key: 'sk-chatglm-0123456789abcdef', parallel: 8 }],
  tools: [getWeather],
});
const baseURL = `${await server.listen({ port: 0 })}/v1`; // 8000 is the default; 0 takes any port that is free

const client = new OpenAI({ baseURL, apiKey: 'sk-chatglm-0123456789abcdef' });
const stream = await client.chat.completions.create({
  model: 'chatglm',
  messages: [{ role: 'user', content: 'What is the capital of France?' }],
  temperature: 0,
  stream: true,
});
process.stdout.write('answer: ');
for await (const { choices } of stream) process.stdout.write(choices[0]?.delta.content ?? '');
console.log();

const stranger = new OpenAI({ baseURL, apiKey: 'sk-wrong' });
await stranger.models.list().catch(({ status, code }) => console.log(`with a wrong key: ${status} ${code}`));
await server.close();

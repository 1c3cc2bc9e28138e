// Shows tools: the model calls one, the tool runs, and the model answers with what it gave. Only families with tools can do
// that: ChatGLM3 and the built-in model.
//
// Run:    node examples/tools.mjs [CHECKPOINT]
// Prints: each call with its arguments, what the tool gave, and the answer that uses it; then a tool that fails, which the
//         model is told.
import { defineTool, loadModel } from 'node-chatglm';

const temperatures = { 北京: 21, 上海: 24 };
const weather = defineTool({
  name: 'get_weather',
  description: '查询某个城市的天气',
  // JSON Schema, or a validator of zod, valibot or arktype. Arguments that do not fit never reach execute().
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  execute: async ({ city }) => {
    if (!Object.hasOwn(temperatures, city)) throw new Error(`there is no station in ${city}`);
    return { weather: '晴', temperature: temperatures[city] };
  },
});

const model = await loadModel(process.argv[2]);
const chat = model.createChat({ tools: [weather], temperature: 0, maxToolRounds: 5 });

for (const question of ['北京今天天气怎么样？', '东京今天天气怎么样？']) {
  const answer = chat.stream(question);
  for await (const chunk of answer) {
    if (chunk.type === 'tool-call') console.log('call:', chunk.call.name, chunk.call.arguments);
    if (chunk.type === 'tool-result') console.log(chunk.result.ok ? 'observation:' : 'failed:', chunk.result.content);
  }
  console.log('answer:', (await answer.result).text);
}
await model.dispose();

// Shows tools: the model asks for one, the program calls it and sends back what it gave with the role `observation`,
// until the model answers in words. Only families with tools can do that: ChatGLM3 and the built-in model.
//
// Run:    node examples/tools.mjs [CHECKPOINT]
// Prints: each call with its arguments, what the tool gave, and the answer that uses it.
import { loadModel } from 'node-chatglm';

/** What may be called. The keys are the names that the model is told about: nothing else is ever called. */
const functions = {
  get_weather: async ({ city }) => ({ city, weather: '晴', temperature: 21 }),
};
const tools = [
  {
    name: 'get_weather',
    description: '查询某个城市的天气',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
];
const MOST_CALLS = 5; // a model may ask again and again

const model = await loadModel(process.argv[2]);
const chat = model.createChat({ tools, temperature: 0 });

let reply = await chat.send('北京今天天气怎么样？');
for (let calls = 0; reply.toolCall && calls < MOST_CALLS; calls++) {
  const { name, arguments: given, raw } = reply.toolCall;
  console.log('call:', name, given ?? raw);
  // The arguments are what the model wrote: `given` is absent where that is no call, and nothing has checked it against
  // the schema. An error is something that the model can be told, too.
  let observation;
  if (Object.hasOwn(functions, name) && given) observation = await functions[name](given);
  else observation = { error: `cannot call ${name}` };
  console.log('observation:', JSON.stringify(observation));
  reply = await chat.send(JSON.stringify(observation), { role: 'observation' });
}
console.log('answer:', reply.text);
await model.dispose();

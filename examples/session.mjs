// Shows a conversation that is saved with all that was computed for it, and goes on after a restart of the program without
// computing its history again.
//
// Run:    node examples/session.mjs [CHECKPOINT]
// Prints: the size of the file, the next answer, and how many tokens of its prompt were not computed again.
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadModel } from 'node-chatglm';

const file = join(tmpdir(), `anna-${process.pid}.chat`);
const system = 'Answer briefly, and only what you were asked. You talk with a child of eight years. '.repeat(4);
{
  const model = await loadModel(process.argv[2]);
  const chat = model.createChat({ system, temperature: 0 });
  await chat.send('My name is Anna.');
  const { bytes } = await chat.save(file);
  console.log(`saved: ${(bytes / 2 ** 20).toFixed(1)} MiB`);
  await model.dispose();
}
{
  const model = await loadModel(process.argv[2]); // in another process, say
  const chat = await model.restoreChat(file, { temperature: 0 });
  const { text, usage } = await chat.send('What is my name?');
  console.log(text);
  console.log(`kept: ${usage.cachedTokens} of ${usage.promptTokens} tokens`);
  await model.dispose();
}
await rm(file);

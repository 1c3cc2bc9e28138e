// Shows how a conversation is saved and restored: it is plain JSON, and another process goes on where this one stopped.
//
// Run:    node examples/history.mjs [CHECKPOINT]
// Prints: the first answer, where the conversation was saved, the answer of the restored chat, which remembers what was
//         said, and the messages that are left after the last exchange was taken back.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { loadModel } from 'node-chatglm';

const folder = await mkdtemp(path.join(tmpdir(), 'chat-'));
const file = path.join(folder, 'conversation.json');
const model = await loadModel(process.argv[2]);

const chat = model.createChat({ temperature: 0 });
console.log((await chat.send('My name is Anna.')).text);
await writeFile(file, JSON.stringify(chat)); // JSON.stringify() calls chat.toJSON()
console.log('saved:', path.basename(file));

// Later, or elsewhere. Options that are plain data, such as the temperature, were saved with it.
const saved = JSON.parse(await readFile(file, 'utf8'));
const restored = model.createChat(saved);
console.log((await restored.send('What is my name?')).text);

restored.undo(); // takes the last question and its answer back
console.log('messages:', restored.history.map(({ role }) => role).join(', '));

await model.dispose();
await rm(folder, { recursive: true });

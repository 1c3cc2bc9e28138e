// Shows `await using`: the model gives its memory back at the end of the block, however that is left.
//
// Run:    tsc, then node; or, from Node 24 on, which has `await using` itself: node examples/await-using.mts
// Needs:  "lib" with "esnext.disposable" in tsconfig.json
// Prints: an answer, and that the model is gone after the block.
import { loadModel, type Model } from 'node-chatglm';

let outside: Model;
{
  await using model = await loadModel(process.argv[2]);
  outside = model;
  const { text } = await model.createChat({ temperature: 0 }).send('What is the capital of France?');
  console.log(text);
}

try {
  await outside.generate('Hello').result;
} catch (error) {
  console.log('after the block:', (error as { code?: string }).code);
}

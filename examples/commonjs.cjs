// Shows the same package from CommonJS: require() gives the same single instance that import gives.
//
// Run:    node examples/commonjs.cjs [CHECKPOINT]
// Prints: what was loaded, and an answer in the shape of THUDM's chat(): { response, history }.
const { loadModel } = require('node-chatglm');

async function main() {
  const model = await loadModel(process.argv[2]);
  const { name, parameters, device, kernels } = model.info;
  console.log(`${name}, ${(parameters / 1e6).toFixed(0)} million parameters, on ${device} (${kernels})`);

  const first = await model.chat('What is the capital of France?', { history: [], temperature: 0 });
  console.log(first.response);
  const second = await model.chat('What is 7 times 8?', { history: first.history, temperature: 0 });
  console.log(second.response, second.history.length);
  await model.dispose();
}

main();

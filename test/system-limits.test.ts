import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

// What the system refuses to native code, in a process of its own whose memory is limited: an error with a code, after
// which the same process goes on.

const testOnLinux = process.platform === 'linux' ? test : test.skip;

testOnLinux('threads that the system does not give', () => {
  const script = `
    const { loadModel, measureBandwidth } = require('node-chatglm');
    async function main() {
      const failures = [];
      try { measureBandwidth(1024, 2 ** 20, 'cpu'); } catch (error) { failures.push(error); }
      await loadModel(undefined, { device: 'cpu', threads: 1024 }).catch((error) => failures.push(error));
      const model = await loadModel(undefined, { device: 'cpu', threads: 2 });
      const { tokens } = await model.generate([1, 2, 3], { maxTokens: 3, stopTokens: [] }).result;
      await model.dispose();
      console.log(JSON.stringify([failures.map(({ name, code }) => [name, code]), tokens.length]));
    }
    main();`;
  // The stacks of 1,024 threads are 8 GiB.
  const limited = `ulimit -s 8192; ulimit -v ${4 << 20}; exec "$0" -e "$1"`;
  const { stdout, stderr, status } = spawnSync('sh', ['-c', limited, process.execPath, script], {
    cwd: join(__dirname, '..'),
    encoding: 'utf8',
  });
  expect([stderr, status]).toEqual(['', 0]);
  const failure = ['ChatGLMError', 'ERR_THREAD_UNAVAILABLE'];
  expect(JSON.parse(stdout)).toEqual([[failure, failure], 3]);
});

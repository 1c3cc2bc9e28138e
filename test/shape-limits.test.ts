import { loadNative, type NativeEvent, type NativeModelSpec } from '../lib/addon/native';
import { shapeProblem } from '../lib/checkpoint/validate';

// Which shapes this runtime knows is said twice: in TypeScript for who reads a checkpoint without native code, and in
// C++, which trusts nobody. Both must say the same.

type Shape = NativeModelSpec['config'];

const shape: Shape = {
  layers: 1,
  hiddenSize: 64,
  heads: 4,
  kvGroups: 2,
  headSize: 16,
  ffnHiddenSize: 64,
  vocabSize: 300,
  normEpsilon: 1e-5,
  ropeDimension: 8,
  ropeBase: 10_000,
  ropeScale: 1,
};
const fields = Object.keys(shape) as (keyof Shape)[];
const fieldNames = { ...Object.fromEntries(fields.map((field) => [field, field])), contextLength: 'contextLength' };

const integers: Partial<Shape>[] = fields
  .filter((field) => Number.isInteger(shape[field]) && field !== 'ropeBase' && field !== 'ropeScale')
  .flatMap((field) =>
    [0, 1, 2, 3, 4, 8, 12, 15, 16, 17, 18, 20, 31, 32, 33, 48, 96, 128, 256, 1023, 1024, 1025, 4096]
      .concat([65_535, 65_536, 65_568, 524_287, 524_288, 524_320, 1_048_575, 1_048_576, 1_048_577, 2 ** 31 - 1])
      .map((value) => ({ [field]: value })),
  );
const combined: Partial<Shape>[] = [
  { heads: 1024, kvGroups: 1024, headSize: 1024 },
  { heads: 1024, kvGroups: 1 },
  { heads: 3, kvGroups: 1 },
  { heads: 6, kvGroups: 4 },
  { heads: 3, kvGroups: 3, headSize: 32, hiddenSize: 96 },
  { headSize: 128, ropeDimension: 128 },
  { headSize: 128, ropeDimension: 130 },
  { headSize: 20, ropeDimension: 10 },
  { headSize: 20, hiddenSize: 80 },
];
// Also what float32 rounds to 0, to 1 or to infinity.
const numbers: Partial<Shape>[] = (['normEpsilon', 'ropeBase', 'ropeScale'] as const).flatMap((field) =>
  [-1, 0, 1e-50, 1e-45, 1e-5, 0.999, 0.99999999, 1, 1.5, 3.4e38, 3.5e38, 1e300].map((value) => ({ [field]: value })),
);

/** What native code says of a model that has this shape and no tensors; undefined if only the tensors are wanting. */
async function nativeProblem(config: Shape): Promise<string | undefined> {
  const events: NativeEvent[] = [];
  const spec: NativeModelSpec = {
    files: [],
    tensors: [],
    config,
    architecture: { norm: 'rms', activation: 'swiglu', rotary: 'interleaved', mask: 'causal', qkvBias: true },
    contextLength: 64,
    maxSequences: 1,
    maxQueue: 0,
    kvCacheTokens: 64,
    kvCacheShrinks: false,
    speculation: false,
    prefillBudgetMs: 0,
    threads: 1,
    quantization: '',
    kvCacheType: 'f16',
    prefixCache: false,
    device: 'cpu',
    seed: 0,
  };
  await new Promise<void>((resolve) => {
    new (loadNative().Model)(spec, (some) => {
      events.push(...some);
      if (some.some(({ type }) => type === 'disposed')) resolve();
    });
  });
  const failure = events.find((event) => event.type === 'failed');
  expect(failure?.error.code).toBe('ERR_CHECKPOINT_INVALID');
  const message = failure?.error.message;
  return message?.startsWith('the checkpoint has no tensor ') ? undefined : message;
}

test.each([{}, ...integers, ...combined])('%j', async (change) => {
  const config = { ...shape, ...change };
  expect(await nativeProblem(config)).toBe(shapeProblem(config, fieldNames as never));
});

test.each(numbers)('%j', async (change) => {
  const config = { ...shape, ...change };
  const [here, there] = [shapeProblem(config, fieldNames as never), await nativeProblem(config)];
  expect(there === undefined).toBe(here === undefined);
  // float32 is written with fewer digits.
  expect(there?.split(/ (?:is|gives) /)[0]).toBe(here?.split(/ (?:is|gives) /)[0]);
});

test.each([-1, 1.5, 2 ** 31, Number.NaN, Number.POSITIVE_INFINITY])('no field may be %d', (value) => {
  for (const field of fields) {
    if (field === 'ropeBase' || field === 'ropeScale' || field === 'normEpsilon') continue;
    const config = { ...shape, [field]: value };
    expect(shapeProblem(config, fieldNames as never)).toMatch(
      new RegExp(`^${field} is ${value}; it must be an integer`),
    );
    expect(() => new (loadNative().Model)({ config, files: [], tensors: [] } as never, () => {})).toThrow(field);
  }
});

test('what no architecture has is refused with the field and what there is', () => {
  const good = { norm: 'rms', activation: 'swiglu', rotary: 'interleaved', mask: 'causal', qkvBias: true };
  const attempt = (change: object) => () =>
    new (loadNative().Model)(
      { config: shape, files: [], tensors: [], architecture: { ...good, ...change } } as never,
      () => {},
    );
  expect(attempt({ norm: 'layer' })).toThrow("architecture.norm is 'layer'; this runtime knows 'rms'");
  expect(attempt({ activation: 'gelu' })).toThrow("architecture.activation is 'gelu'; this runtime knows 'swiglu'");
  expect(attempt({ rotary: '' })).toThrow("architecture.rotary is ''; this runtime knows 'interleaved'");
  expect(attempt({ mask: 'none' })).toThrow("architecture.mask is 'none'; this runtime knows 'causal'");
  expect(attempt({ mask: 1 })).toThrow('architecture.mask must be a string');
  expect(attempt({ qkvBias: 1 })).toThrow('architecture.qkvBias must be true or false');
  expect(attempt({})).toThrow('threads'); // the next field
});

import type { Native } from '../addon/native.js';

/** The addon, loaded when it is first wanted: reading checkpoints does without it. */
export function loadNative(): Native {
  // import() would give a promise, and a second kind of module where this is compiled to CommonJS.
  const module = require('../addon/native.js') as typeof import('../addon/native.js');
  return module.native;
}

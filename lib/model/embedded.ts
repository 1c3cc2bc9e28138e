import path from 'node:path';

/**
 * The path of the model that comes with this package. In an Electron app the model must lie beside the archive, because files
 * in an archive cannot be mapped.
 *
 * @example
 * ```ts
 * const { config } = await openCheckpoint(embeddedModelPath());
 * console.log(config.name, config.contextLength);
 * ```
 */
export function embeddedModelPath(): string {
  const file = path.join(__dirname, '..', '..', 'models', 'chatglm-tiny', 'model.gguf');
  return file.replace(/\bapp\.asar(?=[\\/])/, 'app.asar.unpacked');
}

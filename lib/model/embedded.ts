import path from 'node:path';

/**
 * The file of the model that comes with this package. In an Electron app it must lie beside the archive: files in it cannot
 * be mapped.
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

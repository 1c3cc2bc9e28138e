import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Model } from 'node-chatglm';
import { loadModel, loadSyntheticModel, onGpu } from './support/device';

let model: Model;
let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'sessions-'));
  model = await loadModel();
});
afterAll(async () => {
  await model.dispose();
  rmSync(folder, { recursive: true });
});

const greedy = { temperature: 0, maxTokens: 60 };
let files = 0;
const newFile = () => join(folder, `${files++}.chat`);

/** A chat of a few turns, saved. */
async function saved(on = model): Promise<{ chat: ReturnType<Model['createChat']>; file: string }> {
  const chat = on.createChat({ ...greedy, system: 'Answer briefly, please. '.repeat(8) });
  for (const question of ['你好', 'What is 7 times 8?']) await chat.send(question);
  const file = newFile();
  await chat.save(file);
  return { chat, file };
}

describe('save() and restoreChat()', () => {
  test('a restored chat goes on as the chat itself, without computing its history', async () => {
    const { chat, file } = await saved();
    model.clearCache();
    const restored = await model.restoreChat(file, greedy);
    expect(restored.history).toEqual(chat.history);
    expect(restored.family).toBe(chat.family);
    const there = await restored.send('现在几点了？');
    expect(there.usage.promptTokens - there.usage.cachedTokens).toBeLessThan(30);
    const here = await chat.send('现在几点了？');
    if (!onGpu) expect(there.text).toBe(here.text);
  });

  test('another model of the same weights goes on with it, and the file is replaced as a whole', async () => {
    const { chat, file } = await saved();
    await chat.send('Tell me a story.');
    const { bytes, path } = await chat.save(file);
    expect(path).toBe(file);
    expect(statSync(file).size).toBe(bytes);
    expect(readdirSync(folder).filter((name) => name.includes('.part'))).toEqual([]);
    const other = await loadModel();
    const restored = await other.restoreChat(file, greedy);
    expect(restored.history).toEqual(chat.history);
    const { usage } = await restored.send('你好');
    expect(usage.cachedTokens).toBeGreaterThan(usage.promptTokens - 40);
    await other.dispose();
  });

  test('a file that is cut or changed at any byte is an error', async () => {
    const { file } = await saved();
    const bytes = readFileSync(file);
    const bad = newFile();
    const attempt = async () => await model.restoreChat(bad, { ...greedy, onMismatch: 'history' });
    const invalid = expect.objectContaining({ code: 'ERR_SESSION_INVALID', details: { file: bad } });
    const places = new Set([0, 3, 7, 8, 9, 10, 11, bytes.length - 1, bytes.length - 32, bytes.length - 33]);
    for (let i = 0; i < 60; i++) places.add(Math.floor((bytes.length * i) / 60));
    for (let i = 12; i < 700; i += 9) places.add(i); // the header
    for (const place of places) {
      const changed = Buffer.from(bytes);
      changed[place] = (changed[place] as number) ^ 0x20;
      writeFileSync(bad, changed);
      await expect(attempt()).rejects.toEqual(invalid);
    }
    for (const length of [0, 5, 12, 100, bytes.length - 1, bytes.length - 40, Math.floor(bytes.length / 2)]) {
      writeFileSync(bad, bytes);
      truncateSync(bad, length);
      await expect(attempt()).rejects.toEqual(invalid);
    }
    writeFileSync(bad, Buffer.concat([bytes, Buffer.from([0])]));
    await expect(attempt()).rejects.toEqual(invalid);
    // None of these pages was taken for computed.
    model.clearCache();
    writeFileSync(bad, bytes);
    expect((await attempt()).history).toHaveLength(5);
  });

  test('what is no session', async () => {
    await expect(model.restoreChat(join(folder, 'nothing'))).rejects.toMatchObject({ code: 'ERR_SESSION_INVALID' });
    writeFileSync(join(folder, 'text'), 'Dear diary, this is no session at all.');
    await expect(model.restoreChat(join(folder, 'text'))).rejects.toMatchObject({
      code: 'ERR_SESSION_INVALID',
      message: expect.stringMatching(/is not a saved chat$/),
    });
    await expect(model.restoreChat(folder)).rejects.toMatchObject({
      code: expect.stringMatching(/^ERR_(IO|SESSION_INVALID)$/),
    });
  });

  test('other weights and other keys and values are refused with the reason, or the text is taken', async () => {
    const { chat, file } = await saved();
    const quantized = await loadSyntheticModel({ shape: 'tiny', contextLength: 1024, family: 'chatglm3' });
    await expect(quantized.restoreChat(file)).rejects.toMatchObject({
      code: 'ERR_SESSION_MISMATCH',
      details: { file, what: 'model' },
    });
    const text = await quantized.restoreChat(file, { onMismatch: 'history' });
    expect(text.history).toEqual(chat.history);
    await quantized.dispose();
    const coarse = await loadModel(undefined, { kvCacheType: 'q8_0' });
    await expect(coarse.restoreChat(file)).rejects.toMatchObject({
      code: 'ERR_SESSION_MISMATCH',
      details: { file, what: 'layout' },
      message: expect.stringMatching(/f16.*q8_0/),
    });
    await coarse.dispose();
  });

  test('a cache without room says so', async () => {
    const { file } = await saved();
    const small = await loadModel(undefined, { contextLength: 64, kvCacheTokens: 64 });
    await expect(small.restoreChat(file)).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY', details: { file } });
    expect((await small.restoreChat(file, { onMismatch: 'history' })).history).toHaveLength(5);
    await small.dispose();
  });

  test('an aborted or refused save leaves the old file, and nothing else', async () => {
    const { chat, file } = await saved();
    const before = readFileSync(file);
    await chat.send('你好');
    await expect(chat.save(file, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    await expect(chat.save(join(folder, 'no', 'such'))).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect(readFileSync(file).equals(before)).toBe(true);
    expect(readdirSync(folder).filter((name) => name.includes('.part'))).toEqual([]);
    await expect(model.createChat().save(file)).rejects.toMatchObject({ message: 'the chat has no history to save' });
    const answer = chat.stream('Tell me a story.');
    await expect(chat.save(file)).rejects.toMatchObject({ code: 'ERR_BUSY' });
    await answer.return();
  });
});

describe('cachePrompt()', () => {
  test('keeps the beginning of prompts whatever else is computed, until it is let go', async () => {
    const small = await loadModel(undefined, { contextLength: 512, kvCacheTokens: 1024 });
    const system = 'You are a patient teacher of mathematics. '.repeat(20);
    const kept = await small.cachePrompt([{ role: 'system', content: system }]);
    expect(kept.tokens).toBeGreaterThan(100);
    const fill = async () => {
      for (let i = 0; i < 6; i++) {
        const ids = Array.from({ length: 400 }, (_, j) => 100 + ((i * 37 + j * j) % 3000));
        await small.generate(ids, { maxTokens: 5, stopTokens: [] }).result;
      }
    };
    const cachedTokens = async () =>
      (await small.createChat({ system, maxTokens: 5 }).send('What is 7 times 8?')).usage.cachedTokens;
    await fill();
    expect(await cachedTokens()).toBeGreaterThan(kept.tokens - 10);
    kept.release();
    kept.release();
    await fill();
    await fill();
    expect(await cachedTokens()).toBeLessThan(64);
    await small.dispose();
    kept.release();
  });

  test('of a text and of ids', async () => {
    const text = await model.cachePrompt('# language: Python\n');
    expect(text.tokens).toBe(model.tokenizer.encodePrompt('# language: Python\n').length);
    const ids = Array.from({ length: 130 }, (_, i) => 200 + i);
    const held = await model.cachePrompt(ids);
    expect(held.tokens).toBe(130);
    text[Symbol.dispose]();
    const { usage } = await model.generate([...ids, 5], { maxTokens: 1 }).result;
    expect(usage.cachedTokens).toBeGreaterThanOrEqual(128);
    await expect(model.cachePrompt([])).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(model.cachePrompt('x'.repeat(1_000_000))).rejects.toMatchObject({ code: 'ERR_CONTEXT_OVERFLOW' });
    await expect(model.cachePrompt('x', { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
  });

  test('a fork takes no pages', async () => {
    const chat = model.createChat(greedy);
    await chat.send('Tell me a story.');
    const { usedPages } = model.stats();
    const forks = Array.from({ length: 64 }, () => chat.fork());
    expect(model.stats().usedPages).toBe(usedPages);
    const replies = await Promise.all(forks.slice(0, 8).map((fork) => fork.send('你好')));
    if (!onGpu) expect(new Set(replies.map(({ text }) => text)).size).toBe(1);
    for (const { usage } of replies) expect(usage.cachedTokens).toBeGreaterThanOrEqual(64);
  });
});

import type { Token, Tokens } from 'marked';
import { t } from '../text/index.js';
import { highlight } from './highlight.js';
import { typeset } from './math.js';
import { asText, blocksOf, blockToNodes, type Links } from './render.js';

/** Code that still grows is coloured with every letter up to this length, and once it is complete beyond. */
const COLOURED_WHILE_WRITTEN = 4000;

/**
 * Shows Markdown that grows. Blocks that are complete stay the nodes that they are, so that a long answer costs no more per
 * frame than a short one, and what is selected in them stays selected.
 */
export class MarkdownView {
  readonly #root: HTMLElement;
  /** What the complete blocks were written as. */
  #settled = '';
  #text = '';
  #isComplete = false;
  #links: Links = {};
  /** The last block. */
  #tail: HTMLElement[] = [];
  /** The last block, if it is code, whose node is kept while it grows. */
  #code: { element: HTMLElement; text: string; language: string } | undefined;

  constructor(root: HTMLElement) {
    this.#root = root;
  }

  show(text: string, isComplete: boolean): void {
    if (text === this.#text && isComplete === this.#isComplete) return;
    if (!text.startsWith(this.#settled) || this.#isComplete) this.#clear();
    this.#text = text;
    this.#isComplete = isComplete;
    try {
      this.#update(text.slice(this.#settled.length), isComplete);
      // A link may stand above its address.
      if (isComplete && Object.keys(this.#links).length > 0) {
        const links = this.#links;
        this.#clear();
        this.#links = links;
        this.#update(text, true);
      }
    } catch {
      this.#clear();
      this.#root.replaceChildren(asText(text));
    }
  }

  #clear(): void {
    this.#root.replaceChildren();
    this.#settled = '';
    this.#links = {};
    this.#tail = [];
    this.#code = undefined;
  }

  #update(rest: string, isComplete: boolean): void {
    const tokens = blocksOf(rest, this.#links);
    const last = isComplete ? tokens.length : tokens.findLastIndex(({ type }) => type !== 'space');
    const tail = tokens[last];
    if (this.#code && last === 0 && tail?.type === 'code' && this.#grow(tail as Tokens.Code)) return;
    for (const element of this.#tail) element.remove();
    this.#tail = [];
    this.#code = undefined;
    for (const token of tokens.slice(0, Math.max(0, last))) {
      this.#settled += token.raw;
      this.#append(token, true);
    }
    if (tail) this.#tail = this.#append(tail, false);
  }

  #append(token: Token, isSettled: boolean): HTMLElement[] {
    const made =
      token.type === 'code' ? this.#codeBlock(token as Tokens.Code, isSettled) : finished(blockToNodes(token));
    // Between the elements there are line breaks only.
    const elements = made instanceof DocumentFragment ? ([...made.children] as HTMLElement[]) : [made];
    this.#root.append(...elements);
    return elements;
  }

  #codeBlock({ text, lang }: Tokens.Code, isSettled: boolean): HTMLElement {
    const language = languageOf(lang);
    const code = document.createElement('code');
    code.textContent = text;
    if (isSettled || text.length <= COLOURED_WHILE_WRITTEN) highlight(code, language);
    if (!isSettled) this.#code = { element: code, text, language };
    return codeFrame(code, language);
  }

  /** Writes what came to code that is shown already. */
  #grow({ text, lang }: Tokens.Code): boolean {
    const code = this.#code;
    const language = languageOf(lang);
    if (!code || code.language !== language || !text.startsWith(code.text)) return false;
    if (text === code.text) return true;
    if (text.length <= COLOURED_WHILE_WRITTEN) {
      code.element.textContent = text;
      highlight(code.element, language);
    } else {
      code.element.append(text.slice(code.text.length));
      code.element.normalize();
    }
    code.text = text;
    return true;
  }
}

/** Code with a line above that tells its language and has a button that copies it. */
export function codeFrame(code: HTMLElement, language: string): HTMLElement {
  const frame = document.createElement('div');
  frame.className = 'code';
  const bar = document.createElement('div');
  bar.className = 'code-bar';
  const name = document.createElement('span');
  name.textContent = /^[\w+#.-]{1,20}$/.test(language) ? language : t('code');
  const copy = document.createElement('button');
  copy.type = 'button';
  copy.className = 'copy-code';
  copy.textContent = t('copy');
  bar.append(name, copy);
  const pre = document.createElement('pre');
  // What can be scrolled can be reached with the keyboard.
  pre.tabIndex = 0;
  pre.setAttribute('role', 'region');
  pre.setAttribute('aria-label', t('codeIn', name.textContent));
  pre.append(code);
  frame.append(bar, pre);
  return frame;
}

/** Adds to the nodes of a block what Markdown does not say. */
function finished(block: DocumentFragment): DocumentFragment {
  for (const math of block.querySelectorAll<HTMLElement>('.math')) typeset(math);
  for (const pre of block.querySelectorAll('pre')) {
    const code = pre.querySelector('code');
    if (!code) continue;
    const language = languageOf(/(?:^|\s)language-(\S+)/.exec(code.className)?.[1]);
    code.className = '';
    const place = document.createComment('');
    pre.replaceWith(place);
    place.replaceWith(codeFrame(code, language));
    highlight(code, language);
  }
  for (const table of block.querySelectorAll('table')) {
    const frame = document.createElement('div');
    frame.className = 'table';
    frame.tabIndex = 0;
    frame.setAttribute('role', 'region');
    frame.setAttribute('aria-label', t('table'));
    table.replaceWith(frame);
    frame.append(table);
  }
  return block;
}

function languageOf(info: string | undefined): string {
  return (info ?? '').trim().split(/\s/, 1)[0]?.toLowerCase() ?? '';
}

import { sanitize } from './render.js';

type Highlighter = typeof import('./languages.js');

let loaded: Highlighter | undefined;
let loading: Promise<Highlighter> | undefined;

/** Longer code is shown without colours, as they take time for every letter. */
const MOST_LETTERS = 100_000;

/** Colours code, now if the highlighter and the language are there, else once they are. */
export function highlight(code: HTMLElement, language: string): void {
  const text = code.textContent ?? '';
  if (language === '' || text.length > MOST_LETTERS) return;
  if (loaded?.isLoaded(language)) {
    colour(loaded, code, language, text);
    return;
  }
  loading ??= import('./languages.js');
  loading
    .then(async (module) => {
      loaded = module;
      // The code may have grown meanwhile; then it was coloured since, or is to be with its next letters.
      if ((await module.load(language)) && code.isConnected && code.textContent === text) {
        colour(module, code, language, text);
      }
    })
    .catch(() => {
      // Without colours, code is as readable as the server can be reached; the next block tries again.
      loading = undefined;
    });
}

function colour(module: Highlighter, code: HTMLElement, language: string, text: string): void {
  code.replaceChildren(sanitize(module.toHtml(text, language)));
}

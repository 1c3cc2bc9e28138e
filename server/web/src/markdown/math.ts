type Katex = typeof import('katex').default;

let katex: Katex | undefined;
let loading: Promise<Katex> | undefined;

async function load(): Promise<Katex> {
  const [module] = await Promise.all([import('katex'), loadStyle()]);
  katex = module.default;
  return katex;
}

function loadStyle(): Promise<void> {
  return new Promise((resolve, reject) => {
    const link = document.createElement('link');
    link.rel = 'stylesheet';
    link.href = new URL(MATH_STYLE, import.meta.url).href;
    link.onload = () => resolve();
    link.onerror = () => {
      link.remove();
      reject(new Error('the style of formulas could not be loaded'));
    };
    document.head.append(link);
  });
}

/** Writes a formula in place of its source, now if KaTeX is there, else once it is. */
export function typeset(element: HTMLElement): void {
  const source = element.textContent ?? '';
  const tex = source.replace(/^(?:\$\$?|\\[([])|(?:\$\$?|\\[)\]])$/g, '').trim();
  if (katex) {
    write(katex, element, tex);
    return;
  }
  loading ??= load();
  loading
    .then((loaded) => {
      if (element.textContent === source) write(loaded, element, tex);
    })
    .catch(() => {
      loading = undefined;
    });
}

function write(loaded: Katex, element: HTMLElement, tex: string): void {
  // KaTeX makes nodes and sets their styles one by one, which the Content-Security-Policy allows; the exception is its own
  // note of an error, instead of which the source stays.
  const target = document.createElement('span');
  try {
    loaded.render(tex, target, {
      displayMode: element.dataset.display === 'true',
      throwOnError: true,
      strict: 'ignore',
      trust: false,
      maxSize: 20,
      maxExpand: 200,
    });
  } catch {
    element.classList.add('as-written');
    return;
  }
  element.replaceChildren(target);
  element.classList.add('is-set');
}

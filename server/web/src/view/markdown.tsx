import { useLayoutEffect, useRef } from 'preact/hooks';
import { MarkdownView } from '../markdown/view.js';
import { language } from '../state/settings.js';
import { t } from '../text/index.js';
import { copyText } from './parts.js';

/** Markdown that may still grow. Its nodes are made by {@link MarkdownView}: Preact keeps away from them. */
export function Markdown({ text, isComplete }: { text: string; isComplete: boolean }) {
  const root = useRef<HTMLDivElement>(null);
  const view = useRef<MarkdownView>();
  const shown = useRef(language.value);
  useLayoutEffect(() => {
    if (!root.current) return;
    // The names of buttons in code are of the page's language.
    if (shown.current !== language.value) {
      view.current = undefined;
      root.current.replaceChildren();
      shown.current = language.value;
    }
    view.current ??= new MarkdownView(root.current);
    view.current.show(text, isComplete);
  }, [text, isComplete, language.value]);
  // biome-ignore lint/a11y/useKeyWithClickEvents lint/a11y/noStaticElementInteractions: the clicks are those of buttons in it.
  return <div class="markdown" ref={root} onClick={copyCode} />;
}

async function copyCode(event: MouseEvent): Promise<void> {
  const button = (event.target as Element).closest<HTMLButtonElement>('.copy-code');
  if (!button) return;
  const code = button.closest('.code')?.querySelector('code')?.textContent ?? '';
  if (!(await copyText(code))) return;
  button.textContent = t('copied');
  setTimeout(() => {
    button.textContent = t('copy');
  }, 1500);
}
